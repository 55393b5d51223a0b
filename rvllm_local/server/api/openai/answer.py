"""What both kinds of OpenAI's completions have in common: chunks, usage and the end."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rvllm_local.conversation.calls import Ended, Outcome, Timings, Usage
from rvllm_local.server.api.common import new_id
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import event
from rvllm_local.types import FinishReason

_DONE = b"data: [DONE]\n\n"
Chunk = dict[str, Any]


class CompletionAnswer(ABC):
    """An `Answer` of chunks, each about one choice, in the order of their coming.

    `wants_usage` adds token counts at the end of a stream, and a null in every chunk;
    `wants_timings` adds, beside the counts, what they took.
    """

    id_prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, wants_usage: bool, wants_timings: bool = False) -> None:
        self.request_id = new_id(self.id_prefix)
        self._wants_usage = wants_usage
        self._wants_timings = wants_timings
        self._generation: Generation | None = None
        self._chunk_head = ""
        self._chunk_tail = ', "usage": null' if wants_usage else ""

    @property
    def generation(self) -> Generation:
        """The open request. Only after `opening`."""
        assert self._generation is not None
        return self._generation

    def opening(self, generation: Generation) -> list[Chunk]:
        """One chunk a choice; what all chunks share is rendered once, here."""
        self._generation = generation
        self._chunk_head = json.dumps(self._head(self.chunk_kind))[:-1]
        return [self.first_chunk(index) for index in range(generation.num_choices)]

    async def keep(self) -> None:  # noqa: B027 (no answer of these keeps anything)
        """Nothing outlives a request of this dialect."""

    def closing(self) -> bytes:
        """Usage, if the client wants it, and the marker of the end."""
        if not self._wants_usage:
            return _DONE
        last = {**self._head(self.chunk_kind), "choices": [], **self._counts()}
        return event(last) + _DONE

    def whole(self) -> dict[str, Any]:
        """All choices and their usage."""
        return {
            **self._head(self.kind),
            "choices": self.choices(),
            **self._counts(),
        }

    def _counts(self) -> dict[str, Any]:
        """Token counts, and what they took if the client asked."""
        usage = self.generation.usage
        counts: dict[str, Any] = {"usage": usage_of(usage)}
        if self._wants_timings:
            counts["timings"] = timings_of(usage, self.generation.timings)
        return counts

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """A chunk as a server-sent event."""
        choices = json.dumps([event], allow_nan=False)
        text = f'{self._chunk_head}, "choices": {choices}{self._chunk_tail}}}'
        return f"data: {text}\n\n".encode()

    def problem(self, problem: Problem) -> bytes:
        """An error as clients raise on it."""
        return event(problem.openai())

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.generation.created,
            "model": self.generation.model,
            "system_fingerprint": None,
        }

    @abstractmethod
    def first_chunk(self, index: int) -> Chunk:
        """The chunk that opens a choice."""

    @abstractmethod
    def take(self, outcome: Outcome) -> list[Chunk]:
        """The chunks of an outcome, which also becomes part of the whole reply."""

    @abstractmethod
    def choices(self) -> Sequence[dict[str, Any]]:
        """The choices of a whole reply, after all of them ended."""


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_drafts,
            "rejected_prediction_tokens": usage.rejected_drafts,
        },
    }


def timings_of(usage: Usage, timings: Timings) -> dict[str, Any]:
    """What the tokens took by the server's clock, under llama.cpp's names.

    The speed counts the tokens after the first; without any there is none.
    """
    shown: dict[str, Any] = {
        "cache_n": usage.cached_tokens,
        "prompt_n": usage.prompt_tokens - usage.cached_tokens,
        "prompt_ms": round(timings.prompt_s * 1e3, 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(timings.output_s * 1e3, 3),
    }
    if timings.output_s > 0:
        speed = (usage.completion_tokens - 1) / timings.output_s
        shown["predicted_per_second"] = round(speed, 3)
    return shown


def finish_reason(ended: Ended) -> str:
    """OpenAI's word for why a choice ended."""
    if ended.made_calls and ended.reason is FinishReason.STOP:
        return "tool_calls"
    return str(ended.reason)
