"""An open request: its outcomes as they come, its usage, and its end.

Knows neither HTTP nor a dialect. Whoever leaves a generation early cancels it in the
engine.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rvllm_local.conversation.calls import Delta, Ended, Outcome, Timings, Usage
from rvllm_local.conversation.output import OutputParser
from rvllm_local.errors import EngineError, error_of
from rvllm_local.server.generation.mailbox import Mailbox
from rvllm_local.server.generation.metrics import Metrics
from rvllm_local.server.http.problems import Problem, problem_of
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.tools import ReasoningDelta, ToolCallEnd
from rvllm_local.types import FinishReason, StreamEvent

_SHORTEST_WAIT_S = 0.01
_LIVE_S = 2.0  # a stream without a token for as long is no hurry to others


@dataclass(slots=True)
class Choice:
    """One output as it comes."""

    parser: OutputParser
    prompt_token_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    is_reasoning: bool = False
    made_calls: bool = False
    has_ended: bool = False

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.accepted_drafts,
            self.rejected_drafts,
        )


@dataclass(slots=True, eq=False)
class Generation:
    """An open request. Iterate `outcomes`; leaving the `async with` block ends it."""

    request_id: str
    served: Served
    created: int  # seconds of the epoch
    _mailbox: Mailbox
    _choices: list[Choice]
    _engine_ids: list[str]  # of the engine's requests, one a prompt
    _choices_per_prompt: int
    _settings: ServerSettings
    _metrics: Metrics
    _began: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _last: float | None = None
    left_out: tuple[str, ...] = ()  # parts of schemas that are not enforced

    @property
    def model(self) -> str:
        return self.served.name

    @property
    def token_gap_s(self) -> float | None:
        """Seconds between the tokens so far; None for one that writes none now."""
        if self._first is None or self._last is None or self._is_over():
            return None
        if time.monotonic() - self._last > _LIVE_S:
            return None
        num_tokens = max(choice.tokens for choice in self._choices)
        if num_tokens < 2:
            return None
        return (self._last - self._first) / (num_tokens - 1)

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    def siblings(self, index: int) -> range:
        """The choices of the prompt that choice `index` goes on from."""
        start = index - index % self._choices_per_prompt
        return range(start, start + self._choices_per_prompt)

    def prompt_token_ids(self, index: int) -> tuple[int, ...]:
        """The prompt that choice `index` goes on from."""
        return self._choices[index].prompt_token_ids

    def token_ids(self, index: int) -> list[int]:
        """The prompt and the output so far of choice `index`."""
        choice = self._choices[index]
        return [*choice.prompt_token_ids, *choice.token_ids]

    @property
    def usage(self) -> Usage:
        """The tokens of all choices so far.

        A prompt counts once, however many choices it has: it was computed once.
        """
        prompt_tokens = cached_tokens = 0
        for start in range(0, len(self._choices), self._choices_per_prompt):
            siblings = self._choices[start : start + self._choices_per_prompt]
            prompt_tokens += siblings[0].prompt_tokens
            cached_tokens += min(choice.cached_tokens for choice in siblings)
        return Usage(
            prompt_tokens,
            sum(choice.tokens for choice in self._choices),
            cached_tokens,
            sum(choice.reasoning_tokens for choice in self._choices),
            sum(choice.accepted_drafts for choice in self._choices),
            sum(choice.rejected_drafts for choice in self._choices),
        )

    @property
    def timings(self) -> Timings:
        """How long the prompts and the output took so far, by this clock."""
        first = self._first if self._first is not None else time.monotonic()
        last = self._last if self._last is not None else first
        return Timings(first - self._began, last - first)

    async def outcomes(self) -> AsyncIterator[Sequence[Outcome]]:
        """What came, several outcomes at a time. Ends after the last choice.

        An empty list means that it is time for a sign of life. Raises `Problem` when
        the request takes longer than it may.
        """
        async for events in self._batches():
            outcomes: list[Outcome] = []
            for offset, event in events:
                outcomes.extend(self._read(offset + event.index, event))
            if outcomes or not events:
                yield outcomes

    async def token_events(self) -> AsyncIterator[Sequence[StreamEvent]]:
        """The engine's own events, as they are; otherwise like `outcomes`."""
        async for events in self._batches():
            for offset, event in events:
                self._note(self._choices[offset + event.index], event)
            yield [event for _, event in events]

    async def _batches(self) -> AsyncIterator[Sequence[tuple[int, StreamEvent]]]:
        while not self._is_over():
            # Spread, so that streams which began together do not all break their
            # silence in the same moment.
            silence = self._settings.keepalive_s * random.uniform(0.5, 1.0)
            pause = min(silence, self._time_left())
            try:
                events = await self._mailbox.take(max(pause, _SHORTEST_WAIT_S))
            except TimeoutError:
                events = []
            yield events

    def _is_over(self) -> bool:
        return all(choice.has_ended for choice in self._choices)

    async def accepted(self) -> None:
        """Wait until the engine has compiled the request's grammar.

        Raises `Problem` if the engine refuses it or takes too long.
        """
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
            text = first.error or "the request was refused"
            raise problem_of(error_of(first.error_kind, text, first.error_parameter))
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
        word = "done"
        if not self._is_over():
            word = "cancelled"
            self.cancel()
        self._metrics.finished(self.model, word, time.monotonic() - self._began)

    def _time_left(self) -> float:
        """Seconds until the request has taken too long. Raises `Problem` then."""
        rules = self._settings
        age = time.monotonic() - self._began
        if self._first is None and age > rules.queue_timeout_s:
            raise Problem(
                503,
                "the request waited too long for its first token",
                "queue_timeout",
                retry_after_s=10.0,
            )
        left = rules.request_timeout_s - age
        if left <= 0:
            raise Problem(
                504,
                f"the request took longer than {rules.request_timeout_s:g} s",
                "request_timeout",
            )
        return left

    def _read(self, index: int, event: StreamEvent) -> list[Outcome]:
        """The outcomes of one event of choice `index`."""
        choice = self._choices[index]
        if choice.has_ended:
            return []
        self._note(choice, event)
        pieces = choice.parser.feed(event.text) if event.text else []
        if event.finish_reason is not None:
            pieces += choice.parser.finish(event.finish_reason)
        if pieces:
            choice.is_reasoning = isinstance(pieces[-1], ReasoningDelta)
            if any(isinstance(piece, ToolCallEnd) for piece in pieces):
                choice.made_calls = True
        if choice.is_reasoning:
            choice.reasoning_tokens += len(event.token_ids)
        outcomes: list[Outcome] = []
        if pieces or event.logprobs or event.prompt_logprobs:
            scores = event.prompt_logprobs or ()
            outcomes.append(Delta(index, tuple(pieces), event.logprobs or (), scores))
        if event.finish_reason is not None:
            outcomes.append(self._end(index, choice, event))
        return outcomes

    def _note(self, choice: Choice, event: StreamEvent) -> None:
        if event.token_ids:
            self._count(choice, event)
        if event.finish_reason is not None:
            choice.has_ended = True
            self._metrics.counted(self.model, choice.usage)

    def _count(self, choice: Choice, event: StreamEvent) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._metrics.first_token(self.model, now - self._began)
        elif self._last is not None:
            self._metrics.next_token(self.model, now - self._last)
        self._last = now
        choice.tokens += len(event.token_ids)
        choice.token_ids.extend(event.token_ids)
        choice.cached_tokens = event.cached_tokens
        choice.accepted_drafts = event.accepted_drafts
        choice.rejected_drafts = event.rejected_drafts

    def _end(self, index: int, choice: Choice, event: StreamEvent) -> Ended:
        assert event.finish_reason is not None
        error = event.error
        is_cancelled = event.finish_reason is FinishReason.CANCELLED
        if is_cancelled and self._mailbox.has_overflown:
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
