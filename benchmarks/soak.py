"""Mixed honest and hostile load for a settable time: do memory and latency grow?

    python -m benchmarks.soak [--minutes 30] [--every 5] [--seed 0] [--json FILE]

Two honest streams run all the time, beside clients that ask hostile models, compile
hostile grammars, send large bodies and bytes that are no HTTP. After a tenth of the time,
which warms up, each figure gets a line fitted: its slope an hour, and the slope's standard
error. `--minutes 1440` is a day.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.attacked_server import (
    ASKED,
    Attacked,
    Ends,
    HonestStream,
    attacked_server,
    gaps_of,
    honest_streams,
    name_of,
    sample,
)
from benchmarks.hostile_models import (
    hostile_config,
    hostile_format,
    hostile_template,
    hostile_tokenizer,
)
from tests.support.served import save_thinking

_CHAT = "/v1/chat/completions"
_LARGE = 4 * 2**20  # bytes of a large body
_MODELS = 4  # of each hostile kind
_PAUSE_S = 0.5  # of a hostile client between two requests
_ATTACKERS = 2
_WARMING = 0.1  # of the time
Task = Callable[[Attacked, Ends], None]


def hostile_models(folder: Path, seed: int) -> list[Path]:
    """Models of three kinds that mean harm."""
    base = save_thinking(folder / "base")
    models = []
    for make in (hostile_tokenizer, hostile_template, hostile_config):
        for number in range(_MODELS):
            generator = random.Random(f"{seed} {make.__name__} {number}")
            name = f"{make.__name__}-{number}"
            models.append(make(base, folder / name, generator))
    return models


def tasks(models: Sequence[Path], seed: int) -> Iterator[Task]:
    """What hostile clients do, for ever."""
    generator = random.Random(seed)
    kinds = (_grammar, _large_body, _no_http, _mistyped, _honest_model)
    for number in itertools.count():
        if number % 10 == 0:  # a model takes seconds to load
            yield _asks_a_model(generator.choice(models))
        else:
            yield generator.choice(kinds)(generator)


def _asks_a_model(model: Path) -> Task:
    body = {"model": name_of(model), "messages": [ASKED], "max_tokens": 4}
    return lambda server, ends: ends.ask(server, model.name, _CHAT, body)


def _grammar(generator: random.Random) -> Task:
    form = hostile_format(generator)
    body = {"messages": [ASKED], "max_tokens": 4, "response_format": form}
    return lambda server, ends: ends.ask(
        server, "grammar", _CHAT, {"model": "default", **body}
    )


def _large_body(generator: random.Random) -> Task:
    text = "large " * (generator.randint(2**16, _LARGE) // 6)
    body = {"model": "default", "prompt": text}
    return lambda server, ends: ends.ask(server, "large", "/tokenize", body)


def _no_http(generator: random.Random) -> Task:
    data = generator.randbytes(generator.randint(1, 2000))

    def send(server: Attacked, ends: Ends) -> None:
        address = urlsplit(server.address)
        target = (address.hostname or "", address.port or 0)
        with contextlib.suppress(OSError):
            connection = socket.create_connection(target, timeout=5)
            with connection:
                connection.sendall(b"POST / HTTP/1.1\r\n" + data)
                connection.recv(1000)
        ends.statuses["no HTTP"] += 1

    return send


def _mistyped(generator: random.Random) -> Task:
    wrong = generator.choice([None, "x", -1, 1e300, [], {"a": 1}, True])
    field = generator.choice(["messages", "max_tokens", "stop", "tools", "n"])
    body = {"model": "default", "messages": [ASKED], "max_tokens": 2, field: wrong}
    return lambda server, ends: ends.ask(server, f"{field}={wrong}", _CHAT, body)


def _honest_model(generator: random.Random) -> Task:
    text = "word " * generator.randint(1, 300)
    message = {"role": "user", "content": text}
    body = {"model": "default", "messages": [message], "max_tokens": 4}
    return lambda server, ends: ends.ask(server, "honest", _CHAT, body)


def slope_of(times_s: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of a fitted line an hour, and its standard error."""
    slope, start = statistics.linear_regression(times_s, values)
    errors = [
        value - start - slope * when
        for when, value in zip(times_s, values, strict=True)
    ]
    spread = sum((when - statistics.fmean(times_s)) ** 2 for when in times_s)
    squares = sum(error**2 for error in errors)
    deviation = (squares / max(1, len(values) - 2) / spread) ** 0.5
    return slope * 3600, deviation * 3600


def _watch(
    server: Attacked, streams: Sequence[HonestStream], minutes: float, every_s: float
) -> tuple[list[float], list[dict[str, float]]]:
    """Samples of the server until the time is over, with the streams' mean gaps."""
    began = time.monotonic()
    times_s: list[float] = []
    samples = []
    heard = [0] * len(streams)
    while (age := time.monotonic() - began) < minutes * 60:
        time.sleep(every_s)
        gaps: list[float] = []
        for index, stream in enumerate(streams):
            gaps += stream.gaps[heard[index] :]
            heard[index] = len(stream.gaps)
        figures = sample(server.process.pid)
        figures["gap_ms"] = statistics.fmean(gaps) * 1000 if gaps else 0.0
        times_s.append(age)
        samples.append(figures)
    return times_s, samples


def _attack(
    server: Attacked, todo: Iterator[Task], ends: Ends, is_over: threading.Event
) -> None:
    while not is_over.wait(_PAUSE_S):
        next(todo)(server, ends)


class _Shared:
    """An iterator that several threads may ask."""

    def __init__(self, inner: Iterator[Task]) -> None:
        self._inner, self._lock = inner, threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> Task:
        with self._lock:
            return next(self._inner)


def soak(minutes: float, every_s: float, seed: int) -> dict[str, object]:
    """Run the load, and fit lines to what was sampled."""
    ends, is_over = Ends(), threading.Event()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        honest = save_thinking(folder / "honest")
        models = hostile_models(folder, seed)
        todo = _Shared(tasks(models, seed))
        with (
            attacked_server([honest, *models], "--kv-memory", "16MB") as server,
            honest_streams(server) as streams,
        ):
            engine = server.health()["engines"][0]
            attackers = [
                threading.Thread(target=_attack, args=(server, todo, ends, is_over))
                for _ in range(_ATTACKERS)
            ]
            for attacker in attackers:
                attacker.start()
            times_s, samples = _watch(server, streams, minutes, every_s)
            is_over.set()
            for attacker in attackers:
                attacker.join()
            now = server.health()["engines"][0]
    warm = int(len(times_s) * _WARMING)
    slopes = {}
    for name in samples[0]:
        values = [row[name] for row in samples[warm:]]
        slope, error = slope_of(times_s[warm:], values)
        slopes[name] = {
            "median": round(statistics.median(values), 2),
            "slope_an_hour": round(slope, 2),
            "standard_error": round(error, 2),
        }
    return {
        "minutes": minutes,
        "samples": len(samples),
        "hostile": dict(ends.statuses),
        "wrong": ends.wrong[:20],
        "honest_problems": [text for row in streams for text in row.problems][:5],
        "gaps_ms": gaps_of(streams),
        "engine_is_the_same": engine["pid"] == now["pid"],
        "slopes": slopes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=5, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = soak(arguments.minutes, arguments.every, arguments.seed)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
