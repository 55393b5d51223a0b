"""Runs a call on a model: prepares it on a worker, starts it, and gives its outcomes as they come.

Knows neither HTTP nor a dialect. Whoever leaves a generation early cancels it in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from rvllm_local.clients.contract import make_requests
from rvllm_local.conversation.calls import (
    ChatCall,
    Delta,
    Ended,
    Outcome,
    TextCall,
    Usage,
)
from rvllm_local.conversation.output import OutputParser
from rvllm_local.conversation.prompts import Prepared, prepare_chat, prepare_text
from rvllm_local.errors import EngineError, error_of
from rvllm_local.server.generation.mailbox import Mailbox, Switchboard
from rvllm_local.server.generation.metrics import Metrics
from rvllm_local.server.generation.workers import Workers
from rvllm_local.server.http.problems import Problem, bad_request, problem_of
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.tools import ReasoningDelta, ToolCallEnd
from rvllm_local.types import FinishReason, Request, StreamEvent


@dataclass(slots=True)
class _Choice:
    """One output as it comes."""

    parser: OutputParser
    prompt_tokens: int
    tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    is_reasoning: bool = False
    made_calls: bool = False
    ended: bool = False

    @property
    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens, self.tokens, self.cached_tokens, self.reasoning_tokens
        )


@dataclass(slots=True, eq=False)
class Generation:
    """An open request. Iterate `outcomes`; leaving the `async with` block ends what still runs."""

    request_id: str
    served: Served
    created: int  # seconds of the epoch
    _mailbox: Mailbox
    _choices: list[_Choice]
    _engine_ids: list[str]
    _per_prompt: int  # choices
    _settings: ServerSettings
    _metrics: Metrics
    _began: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _last: float | None = None

    @property
    def model(self) -> str:
        return self.served.name

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def usage(self) -> Usage:
        """The tokens of all choices so far. A prompt counts once, however many choices it has: it was computed once."""
        choices = self._choices
        prompts = [
            choices[first : first + self._per_prompt]
            for first in range(0, len(choices), self._per_prompt)
        ]
        return Usage(
            sum(own[0].prompt_tokens for own in prompts),
            sum(choice.tokens for choice in choices),
            sum(min(choice.cached_tokens for choice in own) for own in prompts),
            sum(choice.reasoning_tokens for choice in choices),
        )

    async def outcomes(self) -> AsyncIterator[Sequence[Outcome]]:
        """What came, several at a time; an empty list when it is time for a sign of life. Ends after the last choice.

        Raises `Problem` when the request takes longer than it may.
        """
        async for events in self._batches():
            found = [
                outcome
                for offset, event in events
                for outcome in self._read(offset + event.index, event)
            ]
            if found or not events:
                yield found

    async def token_events(self) -> AsyncIterator[Sequence[StreamEvent]]:
        """The engine's own events, as they are; otherwise like `outcomes`."""
        async for events in self._batches():
            for offset, event in events:
                self._note(self._choices[offset + event.index], event)
            yield [event for _, event in events]

    async def _batches(self) -> AsyncIterator[Sequence[tuple[int, StreamEvent]]]:
        while not all(choice.ended for choice in self._choices):
            # Spread, so that streams which began together do not all break their silence in the same moment.
            pause = min(
                self._settings.keepalive_s * random.uniform(0.5, 1.0), self._time_left()
            )
            try:
                events = await self._mailbox.take(max(pause, 0.01))
            except TimeoutError:
                events = []
            yield events

    async def accepted(self) -> None:
        """Wait until the engine has compiled the request's grammar, which it may refuse. Raises `Problem`."""
        limit = self._settings.prepare_timeout_s
        try:
            events = await self._mailbox.take(limit)
        except TimeoutError:
            raise Problem(
                400,
                f"compiling the grammar took longer than {limit:g} s",
                "deadline",
                "response_format",
            ) from None
        _, first = events[0]
        if first.finish_reason is FinishReason.ERROR:
            raise problem_of(
                error_of(
                    first.error_kind,
                    first.error or "the request was refused",
                    first.error_parameter,
                )
            )
        for offset, event in events:
            self._mailbox.put(offset, event)

    def fail(self, problem: Problem) -> None:
        """Let whoever reads the outcomes get this problem."""
        self._mailbox.fail(problem)

    def cancel(self) -> None:
        """End what still runs in the engine."""
        for engine_id in self._engine_ids:
            with contextlib.suppress(EngineError):
                self.served.client.cancel(engine_id)

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_over = all(choice.ended for choice in self._choices)
        if not is_over:
            self.cancel()
        self._metrics.finished(
            self.model,
            "done" if is_over else "cancelled",
            time.monotonic() - self._began,
        )

    def _time_left(self) -> float:
        now, rules = time.monotonic(), self._settings
        if self._first is None and now - self._began > rules.queue_timeout_s:
            raise Problem(
                503,
                "the request waited too long for its first token",
                "queue_timeout",
                retry_after_s=10.0,
            )
        left = rules.request_timeout_s - (now - self._began)
        if left <= 0:
            raise Problem(
                504,
                f"the request took longer than {rules.request_timeout_s:g} s",
                "request_timeout",
            )
        return left

    def _read(self, index: int, event: StreamEvent) -> list[Outcome]:
        choice = self._choices[index]
        if choice.ended:
            return []
        self._note(choice, event)
        pieces = choice.parser.feed(event.text) if event.text else []
        if event.finish_reason is not None:
            pieces += choice.parser.finish()
        if pieces:
            choice.is_reasoning = isinstance(pieces[-1], ReasoningDelta)
            choice.made_calls = choice.made_calls or any(
                isinstance(piece, ToolCallEnd) for piece in pieces
            )
        if choice.is_reasoning:
            choice.reasoning_tokens += len(event.token_ids)
        found: list[Outcome] = []
        if pieces or event.logprobs:
            found.append(Delta(index, tuple(pieces), event.logprobs or ()))
        if event.finish_reason is not None:
            found.append(self._end(index, choice, event))
        return found

    def _note(self, choice: _Choice, event: StreamEvent) -> None:
        if event.token_ids:
            self._count(choice, event)
        if event.finish_reason is not None:
            choice.ended = True
            self._metrics.counted(self.model, choice.usage)

    def _count(self, choice: _Choice, event: StreamEvent) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._metrics.first_token(self.model, now - self._began)
        elif self._last is not None:
            self._metrics.next_token(self.model, now - self._last)
        self._last = now
        choice.tokens += len(event.token_ids)
        choice.cached_tokens = event.cached_tokens

    def _end(self, index: int, choice: _Choice, event: StreamEvent) -> Ended:
        assert event.finish_reason is not None
        error = event.error
        if (
            event.finish_reason is FinishReason.CANCELLED
            and self._mailbox.has_overflown
        ):
            error = "the reader of this stream was too slow; it was ended"
        return Ended(
            index,
            event.finish_reason,
            choice.usage,
            choice.made_calls,
            event.stop_string,
            error,
            event.error_parameter,
            event.error_kind,
        )


class Generator:
    """Turns calls into generations. Used on the event loop only."""

    def __init__(
        self,
        registry: Registry,
        workers: Workers,
        settings: ServerSettings,
        metrics: Metrics,
    ) -> None:
        self._registry, self._workers, self._settings, self._metrics = (
            registry,
            workers,
            settings,
            metrics,
        )
        self._switchboard = Switchboard(asyncio.get_running_loop())
        self._open: set[Generation] = set()
        self._opening: set[asyncio.Task[object]] = set()
        self._token_ids: set[str] = set()  # of requests whose ids are their callers'
        self._aborted: Problem | None = None

    @property
    def num_open(self) -> int:
        """Requests that are running or being opened."""
        return len(self._open) + len(self._opening)

    def abort(self, problem: Problem) -> None:
        """End everything that is open, or is being opened, with this problem."""
        self._aborted = problem
        for generation in self._open:
            generation.fail(problem)
        for task in self._opening:
            task.cancel()

    def cancel(self, request_id: str) -> bool:
        """Ask the engine to end a request; False if none with this id is open."""
        found = [
            generation
            for generation in self._open
            if generation.request_id == request_id
        ]
        for generation in found:
            generation.cancel()
        return bool(found)

    @contextlib.asynccontextmanager
    async def open(
        self, call: ChatCall | TextCall, request_id: str
    ) -> AsyncIterator[Generation]:
        """A running generation, cancelled if the block is left before its end.

        Raises `Problem`, or what the engine and the text modules raise.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._abortable():
                served = await stack.enter_async_context(
                    self._registry.lease(call.model)
                )
                prepared = await self._workers.run(
                    lambda: (
                        prepare_chat(served.conversation, call)
                        if isinstance(call, ChatCall)
                        else prepare_text(served.conversation, call)
                    ),
                    self._settings.prepare_timeout_s,
                    "preparing the prompt",
                )
                groups = _groups(prepared, request_id, call.priority, served.adapter)
                generation = await self._start(
                    stack, served, groups, prepared.new_parser
                )
            yield generation

    @contextlib.asynccontextmanager
    async def open_tokens(
        self, model: str, requests: Sequence[Request]
    ) -> AsyncIterator[Generation]:
        """Like `open`, for the choices of one request that is in the engine's terms already, under an id of its own."""
        request_id = requests[0].request_id
        if request_id in self._token_ids:
            raise bad_request(
                "a request with this id is already open; give it another id",
                "request_id",
            )
        async with contextlib.AsyncExitStack() as stack:
            self._token_ids.add(request_id)
            stack.callback(self._token_ids.discard, request_id)
            with self._abortable():
                served = await stack.enter_async_context(self._registry.lease(model))
                if served.adapter is not None:
                    requests = [
                        replace(request, adapter=served.adapter) for request in requests
                    ]
                generation = await self._start(
                    stack, served, [requests], lambda: OutputParser(None)
                )
            yield generation

    @contextlib.contextmanager
    def _abortable(self) -> Iterator[None]:
        """While a request is being opened, `abort` cancels its task; here that becomes the problem."""
        task = asyncio.current_task()
        assert task is not None
        if (aborted := self._aborted) is not None:
            raise aborted
        self._opening.add(task)
        try:
            yield
        except asyncio.CancelledError:
            aborted = self._aborted
            if aborted is None:
                raise
            task.uncancel()
            raise aborted from None
        finally:
            self._opening.discard(task)

    async def _start(
        self,
        stack: contextlib.AsyncExitStack,
        served: Served,
        groups: Sequence[Sequence[Request]],
        new_parser: Callable[[], OutputParser],
    ) -> Generation:
        """Hand requests to the engine, each group the choices of one prompt; `stack` ends what they leave."""
        engine_ids = [group[0].request_id for group in groups]
        num_choices, most = sum(map(len, groups)), served.client.limits.max_open
        if num_choices > most:  # it can never be admitted
            raise bad_request(
                f"the request asks for {num_choices} choices, and at most {most} may be open; ask for fewer",
                "n",
            )

        def cancel() -> None:
            for engine_id in engine_ids:
                with contextlib.suppress(EngineError):
                    served.client.cancel(engine_id)

        mailbox = Mailbox(cancel)
        choices = [
            _Choice(new_parser(), len(request.prompt_token_ids))
            for group in groups
            for request in group
        ]
        generation = Generation(
            engine_ids[0], served, int(time.time()), mailbox, choices, engine_ids, len(groups[0]), self._settings,
            self._metrics,
        )  # fmt: skip
        is_abandoned = threading.Event()

        def start() -> None:
            offset = 0
            for group in groups:
                served.client.start(group, self._switchboard.sink(mailbox, offset))
                offset += len(group)
            if is_abandoned.is_set():  # the caller went while we were at it
                cancel()

        try:
            await self._workers.run(
                start, self._settings.prepare_timeout_s, "starting the request"
            )
        except BaseException:
            is_abandoned.set()
            cancel()
            self._metrics.refused(served.name)
            raise
        await stack.enter_async_context(generation)
        self._open.add(generation)
        stack.callback(self._open.discard, generation)
        if groups[0][0].grammar is not None:
            await generation.accepted()
        return generation


def _groups(
    prepared: Prepared, request_id: str, priority: int, adapter: str | None
) -> list[list[Request]]:
    """The choices of each prompt, in the engine's terms."""
    return [
        make_requests(
            prompt,
            params,
            request_id=request_id if not number else f"{request_id}-{number}",
            priority=priority,
            grammar=prepared.grammar,
            kept_special=prepared.kept_special,
            adapter=adapter,
        )
        for number, (prompt, params) in enumerate(
            zip(prepared.prompts, prepared.params, strict=True)
        )
    ]
