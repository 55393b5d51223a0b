"""What arrives and when: sessions of turns at fixed times.

Knows nothing of how they are sent or measured. Traces are made at a mean of one session
a second and scaled to a rate, so that every load sees the same requests in the same
order. All randomness comes from the seed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.bench.filler_text import words
from rvllm_local.errors import ConfigError

_BURST_MEAN = 4  # requests a burst
_BURST_GAP = 0.1  # mean gap within a burst, in units of the mean gap between requests
_LARGE_SHARE, _LARGE_TOKENS = 0.04, (1500, 2500)
_GIANT_TOKENS = 6000
_DEFAULT_OUTPUT = 48  # tokens
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session: the messages that it adds, and the most tokens of its answer.

    It is sent `think_s` seconds after the turn before it ended.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """Turns over one growing conversation, the first at `at` seconds.

    `kind` tells sorts of requests apart.
    """

    at: float
    turns: tuple[Turn, ...]
    kind: str = "small"
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Sessions in the order of their arrival."""

    name: str
    sessions: tuple[Session, ...]

    @property
    def num_requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)

    @property
    def is_text(self) -> bool:
        """Whether nothing but text is said, which is all that the older route can ask."""
        turns = [turn for session in self.sessions for turn in session.turns]
        return all(
            isinstance(message.get("content"), str)
            for turn in turns
            for message in turn.messages
        )

    def at_rate(self, rate: float) -> Trace:
        """The same sessions at `rate` a second on average; infinite: all at once."""
        if not rate > 0:
            raise ConfigError(f"a rate must be above 0 requests a second, not {rate:g}")
        scaled = [
            dataclasses.replace(session, at=session.at / rate)
            for session in self.sessions
        ]
        return Trace(self.name, tuple(scaled))


@dataclass(frozen=True, slots=True)
class Mix:
    """Sizes of the requests, in tokens: prompts are drawn between `shortest` and `longest`, even in their logarithm."""

    shortest: int = 40
    longest: int = 700
    output: int = 48
    large_share: float = _LARGE_SHARE

    def prompt(self, rng: random.Random) -> tuple[str, str]:
        """A prompt and its kind."""
        if rng.random() < self.large_share:
            return words(rng.randint(*_LARGE_TOKENS), rng), "large"
        size = math.exp(rng.uniform(math.log(self.shortest), math.log(self.longest)))
        return words(round(size), rng), "small"


def steady(
    count: int,
    seed: int,
    mix: Mix,
) -> Trace:
    """One request after the other at equal distances."""
    rng = random.Random(seed)
    sessions = []
    for index in range(count):
        prompt, kind = mix.prompt(rng)
        sessions.append(_single(float(index), prompt, kind, mix.output))
    return Trace("steady", tuple(sessions))


def bursty(
    count: int,
    seed: int,
    mix: Mix,
) -> Trace:
    """A Poisson process of bursts: a geometric number of requests close together, then silence."""
    rng = random.Random(seed)
    times: list[float] = []
    start = 0.0
    while len(times) < count:
        start += rng.expovariate(1 / _BURST_MEAN)
        at = start
        while len(times) < count:
            times.append(at)
            at += rng.expovariate(1 / _BURST_GAP)
            if rng.random() < 1 / _BURST_MEAN:
                break
    times.sort()
    stretch = (count - 1 or 1) / (
        (times[-1] - times[0]) or 1
    )  # so that the mean is one a second
    return Trace(
        "bursty",
        tuple(
            _single((at - times[0]) * stretch, *mix.prompt(rng), mix.output)
            for at in times
        ),
    )


def giant(
    count: int,
    seed: int,
    mix: Mix,
) -> Trace:
    """A Poisson process of small requests, with one giant prompt among them after the first third."""
    rng = random.Random(seed)
    sessions, at = [], 0.0
    small = dataclasses.replace(mix, large_share=0.0)
    for index in range(count):
        if index == count // 3:
            sessions.append(_single(at, words(_GIANT_TOKENS, rng), "giant", mix.output))
        else:
            sessions.append(_single(at, *small.prompt(rng), mix.output))
        at += rng.expovariate(1.0)
    return Trace("giant", tuple(sessions))


def agent(
    count: int,
    seed: int,
    mix: Mix,
    *,
    turns: int = 10,
    prefix: int = 1000,
    think_s: float = 0.0,
) -> Trace:
    """`count` agents, each over a prefix of its own that all its turns share and that each turn lengthens."""
    rng = random.Random(seed)
    sessions, at = [], 0.0
    for number in range(count):
        system = f"You are coding agent number {number}. Use the tools.\n{words(prefix, rng)}"
        first: tuple[Mapping[str, Any], ...] = (
            {"role": "system", "content": system},
            {"role": "user", "content": "Find the failing test and mend it."},
        )
        steps = [Turn(first, mix.output)]
        for turn in range(1, turns):
            result = f"Result of step {turn}: {words(rng.randint(20, 60), rng)}"
            steps.append(
                Turn(({"role": "user", "content": result},), mix.output, think_s)
            )
        sessions.append(Session(at, tuple(steps), "agent", TOOLS))
        at += rng.expovariate(1.0)
    return Trace("agent", tuple(sessions))


TOOLS: tuple[Mapping[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string"}},
                "required": [field],
            },
        },
    }
    for name, about, field in (
        ("read_file", "Read a file of the project", "path"),
        ("search", "Find a text in the project", "text"),
        ("run_tests", "Run the tests whose names match", "pattern"),
    )
)
TRACES: dict[str, Callable[[int, int, Mix], Trace]] = {
    "steady": steady,
    "bursty": bursty,
    "giant": giant,
    "agent": agent,
}


def _single(
    at: float,
    prompt: str,
    kind: str,
    output: int,
) -> Session:
    return Session(at, (Turn(({"role": "user", "content": prompt},), output),), kind)


def save(trace: Trace, path: Path) -> None:
    """Write one session a line."""
    with path.open("w", encoding="utf-8") as file:
        for session in trace.sessions:
            file.write(json.dumps(dataclasses.asdict(session)) + "\n")


def load(path: Path) -> Trace:
    """Read a recorded trace: JSON lines, each a session or a single request.

    A request is `{"at": s, "messages": [...]}`, `{"at": s, "prompt": text}` or `{"at":
    s, "prompt_tokens": n}`, where only sizes were recorded; with `max_tokens` (48). A
    session has `turns` instead. Raises `ConfigError` with the line.
    """
    try:
        # JSON may hold other line ends within a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    sessions = [
        session
        for number, line in enumerate(lines, 1)
        if line.strip()
        for session in _read(path, number, line)
    ]
    if not sessions:
        raise ConfigError(f"the trace {path} holds no request")
    first = min(session.at for session in sessions)
    shifted = [
        dataclasses.replace(session, at=session.at - first) for session in sessions
    ]
    return Trace(path.stem, tuple(sorted(shifted, key=lambda session: session.at)))


def _read(
    path: Path,
    number: int,
    line: str,
) -> Iterator[Session]:
    try:
        row = json.loads(line)
        at = _seconds("at", row["at"])
        steps = [
            _turn(turn, number * 1000 + index)
            for index, turn in enumerate(row.get("turns") or [row])
        ]
        tools = row.get("tools") or []
        if not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("tools are not objects")
        json.dumps(
            [tools, [step.messages for step in steps]], ensure_ascii=False
        ).encode()  # as they will be sent
        yield Session(at, tuple(steps), str(row.get("kind", "recorded")), tuple(tools))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"{path}, line {number} is no request ({type(error).__name__}: {error})"
        ) from error


def _turn(row: Mapping[str, Any], seed: int) -> Turn:
    if messages := row.get("messages"):
        content = tuple(
            {str(name): value for name, value in message.items()}
            for message in messages
        )
    elif prompt := row.get("prompt"):
        if not isinstance(prompt, str):
            raise ValueError("the prompt is no text")
        content = ({"role": "user", "content": prompt},)
    else:
        count = _tokens(row, "prompt_tokens")
        text = words(count, random.Random(seed))
        content = ({"role": "user", "content": text},)
    think_s = _seconds("think_s", row.get("think_s") or 0.0)
    if think_s < 0:
        raise ValueError(f"think_s is {think_s:g}")
    return Turn(content, _output_tokens(row), think_s)


def _output_tokens(row: Mapping[str, Any]) -> int:
    for name in ("max_tokens", "output_tokens"):
        if row.get(name) is not None:
            return _tokens(row, name)
    return _DEFAULT_OUTPUT


def _tokens(row: Mapping[str, Any], name: str) -> int:
    """A number of tokens that could be meant."""
    value = int(row[name])
    if not 1 <= value <= _MOST_TOKENS:
        raise ValueError(f"{name} is {value}")
    return value


def _seconds(name: str, value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {seconds}")
    return seconds
