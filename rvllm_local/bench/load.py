"""The open loop: every session begins when its trace says so, however slow the endpoint is.

Latency counts from the scheduled time, so a client that comes late makes the endpoint look slower, never faster.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.bench.sse import EventReader
from rvllm_local.bench.trace import Session, Trace, Turn
from rvllm_local.server.process_limits import prepare_limits

_WATCH_S = 0.02
_ERROR_BODY, _ERROR_BODY_S = (
    2000,
    2.0,
)  # bytes that are read of an answer with an error's status, and for how long
_LONGEST_DETAIL = 200
_OUR_LIMITS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.EADDRNOTAVAIL,
    errno.ENOBUFS,
    errno.ENOMEM,
}
Sample = Callable[[], float]  # what is read beside the run, such as a server's memory


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go and what they carry. `timeout_s` is counted from the scheduled arrival.

    `secrets` are keys and passwords, which an endpoint may repeat in its errors and nobody should read there.
    """

    url: str
    model: str = "default"
    api: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 300.0
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def path(self) -> str:
        return self.url.rstrip("/") + (
            "/chat/completions" if self.api == "chat" else "/completions"
        )

    def body(
        self,
        messages: list[Mapping[str, Any]],
        turn: Turn,
        tools: tuple[Mapping[str, Any], ...],
    ) -> bytes:
        """The request as bytes."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": turn.max_tokens,
            "stream": True,
        }
        fields["stream_options"] = {"include_usage": True}
        if self.api == "chat":
            fields |= {"messages": messages, **({"tools": tools} if tools else {})}
        else:
            fields["prompt"] = "\n".join(
                str(message.get("content") or "") for message in messages
            )
        return msgspec.json.encode(fields | dict(self.extra))

    def tellable(self, detail: str) -> str:
        """What an endpoint said, on one line, without secrets."""
        for secret in self.secrets:
            detail = detail.replace(secret, "[secret]")
        return "".join(letter if letter.isprintable() else " " for letter in detail)[
            :_LONGEST_DETAIL
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """All outcomes of one trace; `samples` are (seconds, value) of what was read beside.

    `busy_s` is how late this process came to what it had to do (P99), which makes every latency look longer.
    """

    outcomes: list[Outcome]
    wall_s: float
    samples: list[tuple[float, float]]
    busy_s: float = 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the outcomes of the requests that had ended; `num_open` had been sent and had not."""

    def __init__(self, run: Run, num_open: int) -> None:
        super().__init__()
        self.run, self.num_open = run, num_open


def run(
    endpoint: Endpoint,
    trace: Trace,
    sample: Sample | None = None,
    every_s: float = 0.5,
) -> Run:
    """Send the trace and wait for every answer, or its deadline. Raises `Interrupted` on Ctrl-C."""
    prepare_limits(len(trace.sessions))
    running = _Running([[] for _ in trace.sessions])
    try:
        asyncio.run(_run(endpoint, trace, sample, every_s, running))
    except KeyboardInterrupt:
        num_open = sum(
            not outcome.ended and outcome.sent > 0
            for row in running.rows
            for outcome in row
        )
        raise Interrupted(running.so_far(), num_open) from None
    return running.so_far()


async def _run(
    endpoint: Endpoint,
    trace: Trace,
    sample: Sample | None,
    every_s: float,
    running: _Running,
) -> None:
    # A connection a request: a pool that waits, or an old connection that the server just closed, would be our fault.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Content-Type": "application/json", **endpoint.headers}
    async with httpx.AsyncClient(
        limits=limits, timeout=None, headers=headers, trust_env=False
    ) as client:
        clock = running.clock = _Clock()
        beside = [asyncio.create_task(_watch_self(running.lags))]
        if sample is not None:
            beside.append(
                asyncio.create_task(_sample(sample, every_s, clock, running.samples))
            )
        pairs = zip(trace.sessions, running.rows, strict=True)
        tasks = [
            asyncio.create_task(_session(client, endpoint, session, clock, row))
            for session, row in pairs
        ]
        await asyncio.gather(*tasks)
        running.wall_s = clock.now()
        for task in beside:
            task.cancel()


@dataclass(slots=True)
class _Running:
    """What a run has come to so far: the outcomes of each session, what was read beside, and our own delays."""

    rows: list[list[Outcome]]
    samples: list[tuple[float, float]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    clock: _Clock | None = None
    wall_s: float = 0.0

    def so_far(self) -> Run:
        """The requests that have ended."""
        wall = self.wall_s or max(1e-3, self.clock.now() if self.clock else 0.0)
        lags = sorted(self.lags)
        busy = lags[len(lags) * 99 // 100] if lags else 0.0
        return Run(
            [outcome for row in self.rows for outcome in row if outcome.ended],
            wall,
            self.samples,
            busy,
        )


async def _watch_self(lags: list[float]) -> None:
    """How much later than asked for this loop comes to its work, again and again."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_WATCH_S)
        lags.append(time.perf_counter() - began - _WATCH_S)


class _Clock:
    """Seconds since the run began, a moment ahead, so that the first request is not late."""

    def __init__(self) -> None:
        self._start = time.perf_counter() + 0.05

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def until(self, when: float) -> None:
        if (left := when - self.now()) > 0:
            await asyncio.sleep(left)


async def _sample(
    sample: Sample,
    every_s: float,
    clock: _Clock,
    samples: list[tuple[float, float]],
) -> None:
    while True:
        samples.append((clock.now(), await asyncio.to_thread(sample)))
        await asyncio.sleep(every_s)


async def _session(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    session: Session,
    clock: _Clock,
    outcomes: list[Outcome],
) -> None:
    """Turn after turn; a turn that fails ends the session, and the turns after it fail with it."""
    messages: list[Mapping[str, Any]] = []
    when = session.at
    for number, turn in enumerate(session.turns):
        before = outcomes[-1] if number else None
        outcome = Outcome(session.kind, number, when, turn.max_tokens)
        outcomes.append(outcome)
        if before is not None and before.failure is not None:
            outcome.sent = outcome.ended = clock.now()
            outcome.fail(before.failure, "the turn before it failed")
            continue
        messages.extend(turn.messages if before is None else _results(turn, before))
        await clock.until(when)
        await _ask(client, endpoint, messages, session, outcome, clock)
        messages.append(_answer(outcome))
        when = outcome.ended + (
            session.turns[number + 1].think_s if number + 1 < len(session.turns) else 0
        )


def _results(turn: Turn, before: Outcome) -> tuple[Mapping[str, Any], ...]:
    """What a turn adds; if the model called tools, its first message is their result."""
    if not before.tool_calls:
        return turn.messages
    content = turn.messages[0].get("content")
    results = (
        {"role": "tool", "tool_call_id": call["id"], "content": content}
        for call in before.tool_calls
    )
    return (*results, *turn.messages[1:])


def _answer(outcome: Outcome) -> Mapping[str, Any]:
    """The assistant's message, as a client keeps it."""
    if outcome.tool_calls:
        return {"role": "assistant", "content": None, "tool_calls": outcome.tool_calls}
    return {"role": "assistant", "content": "".join(outcome.text)}


async def _ask(
    client: httpx.AsyncClient, endpoint: Endpoint, messages: list[Mapping[str, Any]], session: Session,
    outcome: Outcome, clock: _Clock,
) -> None:  # fmt: skip
    """One request, to its end or its deadline."""
    outcome.sent = clock.now()
    try:
        body = endpoint.body(messages, session.turns[outcome.turn], session.tools)
        outcome.request_bytes = len(body)
        async with asyncio.timeout(
            max(0.0, outcome.scheduled + endpoint.timeout_s - outcome.sent)
        ):
            await _stream(client, endpoint, body, outcome, clock)
    except TimeoutError:
        outcome.fail(Failure.HUNG, f"not whole after {endpoint.timeout_s:g} s")
    except (
        Exception
    ) as error:  # whatever one request meets, the others' figures are not lost for it
        outcome.fail(*_reason(error))
    outcome.ended = clock.now()
    outcome.check()
    outcome.detail = endpoint.tellable(outcome.detail)


def _reason(error: Exception) -> tuple[Failure, str]:
    """Whose fault an exception is, and what it says."""
    said = str(error) or type(error).__name__
    ours = (
        cause
        for cause in _causes(error)
        if isinstance(cause, OSError) and cause.errno in _OUR_LIMITS
    )
    if (limit := next(ours, None)) is not None:
        return Failure.CLIENT, str(limit)
    if isinstance(
        error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL
    ):
        return Failure.REFUSED, said
    if isinstance(error, httpx.DecodingError):
        return Failure.GARBAGE, said
    if isinstance(error, httpx.HTTPError | OSError):
        return Failure.CUT, said
    return Failure.CLIENT, f"{type(error).__name__}: {said}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    while error is not None:
        yield error
        for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from _causes(part)
        error = error.__cause__ or error.__context__


async def _stream(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    body: bytes,
    outcome: Outcome,
    clock: _Clock,
) -> None:
    reader = EventReader(outcome)
    async with client.stream("POST", endpoint.path, content=body) as response:
        if response.status_code != 200:
            await _fail_by_status(response, outcome)
            return
        async for part in response.aiter_bytes():
            reader.feed(part, clock.now())
            if reader.is_done:
                return
        reader.close()


async def _fail_by_status(response: httpx.Response, outcome: Outcome) -> None:
    """Whatever becomes of the body, the status is the reason; of the body its beginning is enough."""
    text = b""
    try:
        async with asyncio.timeout(_ERROR_BODY_S):
            async for part in response.aiter_bytes():
                text += part
                if len(text) > _ERROR_BODY:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass
    said = text[:_ERROR_BODY].decode("utf-8", "replace").strip()
    outcome.fail(
        Failure.STATUS, f"{response.status_code} from {response.url.path}: {said}"
    )
