"""Hostile models, grammars and bodies through a running server beside two honest streams.

    python -m benchmarks.hostile [--share 0.02] [--seed 0] [--attackers 4]
        [--only NAME ...] [--json FILE]

`--share` of 800 tokenizers, 3,000 GGUF headers, 1,500 configurations, 200 templates and
100 grammars; then 15 MB bodies, ordinary grammars beside bombs, and SIGTERM during a
template that loops. The whole takes hours, a share of 0.02 some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attacked_server import (
    ASKED,
    Attacked,
    Ends,
    attacked_server,
    gaps_of,
    honest_streams,
    name_of,
    sample,
)
from benchmarks.hostile_models import LOOP, MAKERS, hostile_format, with_template
from tests.support.served import save_thinking

COUNTS = {
    "tokenizers": 800,
    "gguf headers": 3000,
    "configurations": 1500,
    "templates": 200,
    "grammars": 100,
}
_FLAGS = ("--kv-memory", "16MB", "--drain", "5s")
_IDLE_S = 15.0
_SETTLE_S = 30.0
_CHAT = "/v1/chat/completions"


def attack(
    server: Attacked, tasks: Sequence[Callable[[Ends], None]], attackers: int
) -> Ends:
    """Run all tasks, some at a time."""
    ends, left = Ends(), list(reversed(tasks))

    def work() -> None:
        while left:
            left.pop()(ends)

    threads = [threading.Thread(target=work) for _ in range(attackers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def chat_with(server: Attacked, model: str, **more: Any) -> Callable[[Ends], None]:
    """A hostile client's chat."""
    name = name_of(model)
    body = {"model": name, "messages": [ASKED], "max_tokens": 8, **more}
    return lambda ends: ends.ask(server, name, _CHAT, body)


def measured(
    server: Attacked, tasks: Sequence[Callable[[Ends], None]], attackers: int
) -> dict[str, Any]:
    """What an attack does to two honest streams, to the memory and to the engine."""
    engine = server.health()["engines"][0]
    with honest_streams(server) as streams:
        time.sleep(_IDLE_S)
        idle = gaps_of(streams)
    before = sample(server.process.pid)
    with honest_streams(server) as streams:
        began = time.monotonic()
        ends = attack(server, tasks, attackers)
        took_s = time.monotonic() - began
        beside = gaps_of(streams)
        problems = [problem for stream in streams for problem in stream.problems]
    time.sleep(_SETTLE_S)
    after = sample(server.process.pid)
    now = server.health()["engines"][0]
    return {
        "count": len(tasks),
        "seconds": round(took_s, 1),
        "ends": dict(ends.statuses),
        "wrong": ends.wrong[:10],
        "longest_s": round(ends.longest_s, 1),
        "idle_gaps_ms": idle,
        "gaps_ms": beside,
        "honest_problems": problems[:5],
        "memory_mb": [round(before["all_mb"]), round(after["all_mb"])],
        "server_mb": [round(before["server_mb"]), round(after["server_mb"])],
        "engine_is_the_same": engine.get("pid") == now.get("pid"),
        "restarts": now.get("restarts"),
    }


def models_attack(
    kind: str, count: int, seed: int, attackers: int, folder: Path
) -> dict[str, Any]:
    """Ask for many hostile models of a kind."""
    base = save_thinking(folder / "base")
    honest = save_thinking(folder / "honest")
    models = []
    for number in range(count):
        generator = random.Random(f"{seed} {kind} {number}")
        target = folder / f"{kind.replace(' ', '-')}-{number}"
        models.append(str(MAKERS[kind](base, target, generator)))
    with attacked_server([honest, *models], *_FLAGS) as server:
        tasks = [chat_with(server, model) for model in models]
        return measured(server, tasks, attackers)


def grammars_attack(
    count: int, seed: int, attackers: int, folder: Path
) -> dict[str, Any]:
    """Hostile grammars for the honest model."""
    honest = save_thinking(folder / "honest")
    generator = random.Random(f"{seed} grammars")
    with attacked_server([honest], *_FLAGS) as server:
        tasks = []
        for _ in range(count):
            form = hostile_format(generator)
            tasks.append(chat_with(server, str(honest), response_format=form))
        return measured(server, tasks, attackers)


def bombs_attack(folder: Path) -> dict[str, Any]:
    """Ordinary grammars beside eight bombs: how they end, and how long they take."""
    honest = save_thinking(folder / "honest")
    terms = [{"type": "string", "pattern": f".*a.{{{n}}}b.*"} for n in range(40)]
    schema = {"name": "bomb", "schema": {"allOf": terms}}
    bomb = {"type": "json_schema", "json_schema": schema}
    statuses: list[int] = []
    waits: list[float] = []
    with attacked_server([honest], *_FLAGS) as server:
        ends = Ends()
        task = chat_with(server, str(honest), response_format=bomb)
        threads = [threading.Thread(target=task, args=(ends,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            form = {"type": "regex", "regex": f"[a-z]{{1,{len(waits) + 5}}}"}
            body = {"messages": [ASKED], "max_tokens": 4, "response_format": form}
            began = time.monotonic()
            answer = server.post(_CHAT, {"model": "default", **body})
            waits.append(round(time.monotonic() - began, 2))
            statuses.append(answer.status_code)
        return {
            "bombs": dict(ends.statuses),
            "wrong": ends.wrong,
            "ordinary": {code: statuses.count(code) for code in set(statuses)},
            "longest_s": max(waits, default=0.0),
        }


def bodies_attack(folder: Path) -> dict[str, Any]:
    """Four bodies of 15 MB to count_tokens, and small requests beside them."""
    honest = save_thinking(folder / "honest")
    text = "The sea is salty. " * (15 * 2**20 // 18)
    message = {"role": "user", "content": text}
    large = json.dumps({"model": "default", "messages": [message]}).encode()
    small = {"model": "default", "messages": [ASKED], "max_tokens": 1}
    waits: list[float] = []
    with attacked_server([honest], "--kv-memory", "16MB") as server:
        server.post(_CHAT, small)
        start = peak = sample(server.process.pid)["all_mb"]
        ends = Ends()

        def send() -> None:
            ends.ask(server, "15 MB", "/v1/messages/count_tokens", large)
            ends.ask(server, "15 MB", "/tokenize", large_text)

        large_text = json.dumps({"model": "default", "prompt": text}).encode()
        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            server.post(_CHAT, small)
            waits.append(time.monotonic() - began)
            peak = max(peak, sample(server.process.pid)["all_mb"])
        time.sleep(_SETTLE_S)
        end = sample(server.process.pid)["all_mb"]
    return {
        "ends": dict(ends.statuses),
        "wrong": ends.wrong,
        "small_longest_s": round(max(waits), 2),
        "small_count": len(waits),
        "memory_mb": {"start": round(start), "most": round(peak), "after": round(end)},
    }


def signal_attack(folder: Path) -> dict[str, Any]:
    """SIGTERM while templates are rendered that never end."""
    base = save_thinking(folder / "base")
    honest = save_thinking(folder / "honest")
    models = []
    loop = "{% if messages[0].content == 'Hm?' %}" + LOOP + "{% endif %}"
    for number in range(4):
        model = with_template(base, folder / f"loop-{number}", loop)
        models.append(str(model))
    with attacked_server([honest, *models], *_FLAGS) as server:
        for model in models:
            task = chat_with(server, model)
            threading.Thread(target=task, args=(Ends(),), daemon=True).start()
        time.sleep(4)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        took_s = time.monotonic() - began
    return {"status": status, "seconds": round(took_s, 2), "drain_s": 5}


def run(name: str, share: float, seed: int, attackers: int) -> dict[str, Any]:
    """One attack, in a folder of its own."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if name == "bodies":
            return bodies_attack(folder)
        if name == "bombs":
            return bombs_attack(folder)
        if name == "signal":
            return signal_attack(folder)
        count = max(1, round(COUNTS[name] * share))
        if name == "grammars":
            return grammars_attack(count, seed, attackers, folder)
        return models_attack(name, count, seed, attackers, folder)


def main() -> None:
    names = [*COUNTS, "bodies", "bombs", "signal"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attackers", type=int, default=4, help="at once")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.only:
        results[name] = run(name, arguments.share, arguments.seed, arguments.attackers)
        print(name, json.dumps(results[name], indent=1), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
