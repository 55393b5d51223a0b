"""The one loop that answers a request, whole or as a stream, in any dialect.

A dialect gives an `Answer`, which turns outcomes into its own events and its own whole
reply. The loop opens the generation, feeds the answer, and ends on the first failure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from rvllm_local.conversation.calls import ChatCall, Ended, Outcome, TextCall
from rvllm_local.server.api.common import raise_failed
from rvllm_local.server.api.service import Service
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.byte_budget import Hold
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import (
    SERVER_SENT_EVENTS,
    EventStream,
    Framing,
    JSONReply,
    while_connected,
)

Event = Mapping[str, Any]


class Answer(Protocol):
    """One reply as it grows. Every outcome of the request is taken, in order.

    A stream sends the events of `opening` and `take`, then `closing`. A whole reply
    drops the events and sends `whole`, which is asked for when all choices ended well.
    """

    @property
    def request_id(self) -> str:
        """The id of the reply, under which the engine knows the request."""

    def opening(self, generation: Generation) -> Sequence[Event]:
        """The request was accepted. Called once, before any outcome."""

    def take(self, outcome: Outcome) -> Sequence[Event]:
        """What a delta, or a choice that ended well, changes."""

    async def keep(self) -> None:
        """Keep what outlives the request. Awaited before the end is told."""

    def closing(self) -> bytes:
        """The last bytes of a stream, after all events; often none."""

    def whole(self) -> dict[str, Any]:
        """The body of a whole reply."""

    def encode(self, event: Event) -> bytes:
        """An event as a stream sends it."""

    def problem(self, problem: Problem) -> bytes:
        """What a stream tells of a failure after its opening."""


async def reply(
    service: Service,
    request: Request,
    call: ChatCall | TextCall,
    answer: Answer,
    is_stream: bool,
    framing: Framing = SERVER_SENT_EVENTS,
) -> Response | ASGIApp:
    """The reply to a request that was read into a call. Raises `Problem`."""
    left_out: list[str] = request.state.left_out
    service.left_out.keep(answer.request_id, left_out)
    if is_stream:
        events = _stream(service, call, answer, left_out)
        return EventStream(events, answer.problem, framing)
    hold: Hold = request.state.body_hold
    whole = _whole(service, call, answer, left_out, hold)
    return await while_connected(request, whole)


async def _whole(
    service: Service,
    call: ChatCall | TextCall,
    answer: Answer,
    left_out: list[str],
    hold: Hold,
) -> Response:
    """The whole reply; `left_out` gets what of the request is not enforced.

    `hold` is released when the prompt is made. (A stream's is, when its answer begins.)
    """
    async with service.generator.open(call, answer.request_id) as generation:
        hold.release()
        left_out.extend(generation.left_out)
        answer.opening(generation)
        async for outcomes in generation.outcomes():
            _take(answer, outcomes)
        await answer.keep()
        return JSONReply(answer.whole())


async def _stream(
    service: Service, call: ChatCall | TextCall, answer: Answer, left_out: list[str]
) -> AsyncIterator[bytes]:
    async with service.generator.open(call, answer.request_id) as generation:
        left_out.extend(generation.left_out)
        yield _encoded(answer, answer.opening(generation))
        async for outcomes in generation.outcomes():
            events = _take(answer, outcomes)
            if any(isinstance(outcome, Ended) for outcome in outcomes):
                await answer.keep()
            if events:
                yield _encoded(answer, events)
            elif not outcomes:
                yield b""  # a sign of life
        if ending := answer.closing():
            yield ending


def _take(answer: Answer, outcomes: Sequence[Outcome]) -> list[Event]:
    events: list[Event] = []
    for outcome in outcomes:
        if isinstance(outcome, Ended):
            raise_failed(outcome)
        events.extend(answer.take(outcome))
    return events


def _encoded(answer: Answer, events: Sequence[Event]) -> bytes:
    return b"".join(map(answer.encode, events))
