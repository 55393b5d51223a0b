"""The open loop: a session begins when its trace says so, however slow the endpoint is.

Latency counts from the scheduled time. So a client that comes late makes the endpoint
look slower, never faster.
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
# Bytes that are read of an answer with an error's status, and for how long.
_ERROR_BODY = 2000
_ERROR_BODY_S = 2.0
_LONGEST_DETAIL = 200
_OUR_LIMITS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.EADDRNOTAVAIL,
    errno.ENOBUFS,
    errno.ENOMEM,
}
Sample = Callable[[], float]  # reads something beside the run, as a server's memory


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and what they carry.

    timeout_s: counted from the scheduled arrival.
    secrets: keys and passwords. An endpoint may repeat them in its errors, and nobody
        should read them there.
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
        base = self.url.rstrip("/")
        if self.api == "chat":
            return f"{base}/chat/completions"
        return f"{base}/completions"

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
            "stream_options": {"include_usage": True},
        }
        if self.api == "chat":
            fields["messages"] = messages
            if tools:
                fields["tools"] = tools
        else:
            texts = [str(message.get("content") or "") for message in messages]
            fields["prompt"] = "\n".join(texts)
        fields.update(self.extra)
        return msgspec.json.encode(fields)

    def tellable(self, detail: str) -> str:
        """An endpoint's words on one line, without secrets."""
        for secret in self.secrets:
            detail = detail.replace(secret, "[secret]")
        letters = [letter if letter.isprintable() else " " for letter in detail]
        return "".join(letters[:_LONGEST_DETAIL])


@dataclass(frozen=True, slots=True)
class Run:
    """All outcomes of one trace.

    samples: (seconds, value) of what was read beside.
    busy_s: how late this process came to its own work (P99). That makes every latency
        look longer.
    """

    outcomes: list[Outcome]
    wall_s: float
    samples: list[tuple[float, float]]
    busy_s: float = 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the outcomes of the requests that had ended.

    `num_open` requests had been sent and had not ended.
    """

    def __init__(self, run: Run, num_open: int) -> None:
        super().__init__()
        self.run = run
        self.num_open = num_open


def run(
    endpoint: Endpoint,
    trace: Trace,
    sample: Sample | None = None,
    every_s: float = 0.5,
) -> Run:
    """Send the trace and wait for every answer, or its deadline.

    Raises `Interrupted` on Ctrl-C.
    """
    prepare_limits(len(trace.sessions))
    running = _Running([[] for _ in trace.sessions])
    try:
        asyncio.run(_run(endpoint, trace, sample, every_s, running))
    except KeyboardInterrupt:
        num_open = running.count_open()
        raise Interrupted(running.so_far(), num_open) from None
    return running.so_far()


async def _run(
    endpoint: Endpoint,
    trace: Trace,
    sample: Sample | None,
    every_s: float,
    running: _Running,
) -> None:
    # A connection a request: a pool that waits, or an old connection that the server
    # just closed, would be our fault.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"Content-Type": "application/json", **endpoint.headers}
    async with httpx.AsyncClient(
        limits=limits, timeout=None, headers=headers, trust_env=False
    ) as client:
        clock = _Clock()
        running.clock = clock
        watch = _watch_self(running.lags)
        beside = [asyncio.create_task(watch)]
        if sample is not None:
            sampling = _sample(sample, every_s, clock, running.samples)
            beside.append(asyncio.create_task(sampling))
        tasks = []
        for session, row in zip(trace.sessions, running.rows, strict=True):
            turns = _session(client, endpoint, session, clock, row)
            tasks.append(asyncio.create_task(turns))
        await asyncio.gather(*tasks)
        running.wall_s = clock.now()
        for task in beside:
            task.cancel()


@dataclass(slots=True)
class _Running:
    """A run while it goes on."""

    rows: list[list[Outcome]]  # by session
    samples: list[tuple[float, float]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  # our own delays
    clock: _Clock | None = None
    wall_s: float = 0.0

    def so_far(self) -> Run:
        """The requests that have ended."""
        wall_s = self.wall_s
        if not wall_s:
            now = self.clock.now() if self.clock else 0.0
            wall_s = max(1e-3, now)
        busy_s = 0.0
        lags = sorted(self.lags)
        if lags:
            busy_s = lags[len(lags) * 99 // 100]
        ended = [outcome for outcome in self._outcomes() if outcome.ended]
        return Run(ended, wall_s, self.samples, busy_s)

    def count_open(self) -> int:
        """How many requests were sent and have not ended."""
        count = 0
        for outcome in self._outcomes():
            if outcome.sent > 0 and not outcome.ended:
                count += 1
        return count

    def _outcomes(self) -> Iterator[Outcome]:
        for row in self.rows:
            yield from row


async def _watch_self(lags: list[float]) -> None:
    """Note how much later than planned this loop comes to its work, again and again."""
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
        left = when - self.now()
        if left > 0:
            await asyncio.sleep(left)


async def _sample(
    sample: Sample,
    every_s: float,
    clock: _Clock,
    samples: list[tuple[float, float]],
) -> None:
    while True:
        began = clock.now()
        value = await asyncio.to_thread(sample)
        samples.append((began, value))
        await asyncio.sleep(every_s)


async def _session(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    session: Session,
    clock: _Clock,
    outcomes: list[Outcome],
) -> None:
    """Send turn after turn. If a turn fails, the turns after it fail with it."""
    messages: list[Mapping[str, Any]] = []
    when = session.at
    before: Outcome | None = None
    for number, turn in enumerate(session.turns):
        outcome = Outcome(session.kind, number, when, turn.max_tokens)
        outcomes.append(outcome)
        if before is not None and before.failure is not None:
            outcome.sent = outcome.ended = clock.now()
            outcome.fail(before.failure, "the turn before it failed")
            before = outcome
            continue
        if before is None:
            messages.extend(turn.messages)
        else:
            messages.extend(_results(turn, before))
        await clock.until(when)
        await _ask(client, endpoint, messages, session, outcome, clock)
        messages.append(_answer(outcome))
        before = outcome
        when = outcome.ended
        if number + 1 < len(session.turns):
            when += session.turns[number + 1].think_s


def _results(turn: Turn, before: Outcome) -> tuple[Mapping[str, Any], ...]:
    """The messages that a turn adds.

    If the model called tools, its first message is their result.
    """
    if not before.tool_calls:
        return turn.messages
    content = turn.messages[0].get("content")
    messages: list[Mapping[str, Any]] = []
    for call in before.tool_calls:
        result = {"role": "tool", "tool_call_id": call["id"], "content": content}
        messages.append(result)
    messages.extend(turn.messages[1:])
    return tuple(messages)


def _answer(outcome: Outcome) -> Mapping[str, Any]:
    """The assistant's message, as a client keeps it."""
    if outcome.tool_calls:
        return {"role": "assistant", "content": None, "tool_calls": outcome.tool_calls}
    return {"role": "assistant", "content": "".join(outcome.text)}


async def _ask(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    messages: list[Mapping[str, Any]],
    session: Session,
    outcome: Outcome,
    clock: _Clock,
) -> None:
    """One request, to its end or its deadline."""
    outcome.sent = clock.now()
    try:
        body = endpoint.body(messages, session.turns[outcome.turn], session.tools)
        outcome.request_bytes = len(body)
        left_s = outcome.scheduled + endpoint.timeout_s - outcome.sent
        async with asyncio.timeout(max(0.0, left_s)):
            await _stream(client, endpoint, body, outcome, clock)
    except TimeoutError:
        outcome.fail(Failure.HUNG, f"not whole after {endpoint.timeout_s:g} s")
    # Whatever one request meets, the others' figures are not lost for it.
    except Exception as error:
        outcome.fail(*_reason(error))
    outcome.ended = clock.now()
    outcome.check()
    outcome.detail = endpoint.tellable(outcome.detail)


def _reason(error: Exception) -> tuple[Failure, str]:
    """Whose fault an exception is, and what it says."""
    said = str(error) or type(error).__name__
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _OUR_LIMITS:
            return Failure.CLIENT, str(cause)
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
    """Note the status as the reason, whatever becomes of the body.

    The beginning of the body is enough.
    """
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
