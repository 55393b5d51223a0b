"""The open loop: every session begins when its trace says so, however slow the endpoint is.

Latency counts from the scheduled time, so a client that comes late makes the endpoint look slower, never faster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.bench.sse import EventReader
from rvllm_local.bench.trace import Session, Trace, Turn

Sample = Callable[[], float]  # what is read beside the run, such as a server's memory


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go and what they carry. `timeout_s` is counted from the scheduled arrival."""

    url: str
    model: str = "default"
    api: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 300.0

    @property
    def path(self) -> str:
        return self.url.rstrip("/") + ("/chat/completions" if self.api == "chat" else "/completions")

    def body(self, messages: list[Mapping[str, Any]], turn: Turn, tools: tuple[Mapping[str, Any], ...]) -> bytes:
        """The request as bytes."""
        asked: dict[str, Any] = {"model": self.model, "max_tokens": turn.max_tokens, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        if self.api == "chat":
            asked |= {"messages": messages, **({"tools": tools} if tools else {})}
        else:
            asked["prompt"] = "\n".join(str(message["content"]) for message in messages)
        return msgspec.json.encode(asked | dict(self.extra))


@dataclass(frozen=True, slots=True)
class Run:
    """All outcomes of one trace; `samples` are (seconds, value) of what was read beside."""

    outcomes: list[Outcome]
    wall_s: float
    samples: list[tuple[float, float]]


def run(endpoint: Endpoint, trace: Trace, sample: Sample | None = None, every_s: float = 0.5) -> Run:
    """Send the trace and wait for every answer, or its deadline."""
    return asyncio.run(_run(endpoint, trace, sample, every_s))


async def _run(endpoint: Endpoint, trace: Trace, sample: Sample | None, every_s: float) -> Run:
    # A connection a request: a pool that waits, or an old connection that the server just closed, would be our fault.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Content-Type": "application/json", **endpoint.headers}
    samples: list[tuple[float, float]] = []
    async with httpx.AsyncClient(limits=limits, timeout=None, headers=headers, trust_env=False) as client:
        clock = _Clock()
        sampler = asyncio.create_task(_sample(sample, every_s, clock, samples)) if sample else None
        tasks = [asyncio.create_task(_session(client, endpoint, session, clock)) for session in trace.sessions]
        done = await asyncio.gather(*tasks)
        wall = clock.now()
        if sampler is not None:
            sampler.cancel()
    return Run([outcome for row in done for outcome in row], wall, samples)


class _Clock:
    """Seconds since the run began, a moment ahead, so that the first request is not late."""

    def __init__(self) -> None:
        self._start = time.perf_counter() + 0.05

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def until(self, when: float) -> None:
        if (left := when - self.now()) > 0:
            await asyncio.sleep(left)


async def _sample(sample: Sample, every_s: float, clock: _Clock, samples: list[tuple[float, float]]) -> None:
    while True:
        samples.append((clock.now(), await asyncio.to_thread(sample)))
        await asyncio.sleep(every_s)


async def _session(client: httpx.AsyncClient, endpoint: Endpoint, session: Session, clock: _Clock) -> list[Outcome]:
    """Turn after turn; a turn that fails ends the session, and the turns after it fail with it."""
    outcomes: list[Outcome] = []
    messages: list[Mapping[str, Any]] = []
    when = session.at
    for number, turn in enumerate(session.turns):
        messages.extend(_results(turn, outcomes[-1]) if number else turn.messages)
        outcome = Outcome(session.kind, number, when, turn.max_tokens)
        outcomes.append(outcome)
        if number and outcomes[number - 1].failure is not None:
            outcome.sent = outcome.ended = clock.now()
            outcome.fail(outcomes[number - 1].failure or Failure.CUT, "the turn before it failed")
            continue
        await clock.until(when)
        body = endpoint.body(messages, turn, session.tools)
        await _ask(client, endpoint, body, outcome, clock)
        messages.append(_answer(outcome))
        when = outcome.ended + (session.turns[number + 1].think_s if number + 1 < len(session.turns) else 0)
    return outcomes


def _results(turn: Turn, before: Outcome) -> tuple[Mapping[str, Any], ...]:
    """What a turn adds; if the model called tools, its first message is their result."""
    if not before.tool_calls:
        return turn.messages
    content = turn.messages[0]["content"]
    results = ({"role": "tool", "tool_call_id": call["id"], "content": content} for call in before.tool_calls)
    return (*results, *turn.messages[1:])


def _answer(outcome: Outcome) -> Mapping[str, Any]:
    """The assistant's message, as a client keeps it."""
    if outcome.tool_calls:
        return {"role": "assistant", "content": None, "tool_calls": outcome.tool_calls}
    return {"role": "assistant", "content": "".join(outcome.text)}


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, body: bytes, outcome: Outcome, clock: _Clock) -> None:
    """One request, to its end or its deadline."""
    outcome.sent, outcome.request_bytes = clock.now(), len(body)
    try:
        async with asyncio.timeout(max(0.0, outcome.scheduled + endpoint.timeout_s - outcome.sent)):
            await _stream(client, endpoint, body, outcome, clock)
    except TimeoutError:
        outcome.fail(Failure.HUNG, f"not whole after {endpoint.timeout_s:g} s")
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        outcome.fail(Failure.REFUSED, str(error) or type(error).__name__)
    except (httpx.HTTPError, OSError) as error:
        outcome.fail(Failure.CUT, str(error) or type(error).__name__)
    outcome.ended = clock.now()
    outcome.check()


async def _stream(client: httpx.AsyncClient, endpoint: Endpoint, body: bytes, outcome: Outcome, clock: _Clock) -> None:
    reader = EventReader(outcome)
    async with client.stream("POST", endpoint.path, content=body) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode("utf-8", "replace")
            outcome.fail(Failure.STATUS, f"{response.status_code}: {text}")
            return
        async for part in response.aiter_bytes():
            reader.feed(part, clock.now())
            if reader.is_done:
                return
        reader.close()
