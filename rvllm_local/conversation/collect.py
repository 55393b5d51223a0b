"""Puts the events of a stream together again, choice by choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rvllm_local.types import (
    ChatEvent,
    Completion,
    FinishReason,
    StreamEvent,
    TokenLogprob,
    ToolCall,
)


def collect(stream: Iterable[StreamEvent], num_choices: int) -> list[Completion]:
    """Read a stream to its end and put each choice's events together."""
    events: list[list[StreamEvent]] = [[] for _ in range(num_choices)]
    for event in stream:
        events[event.index].append(event)
    return [_completion(index, parts) for index, parts in enumerate(events)]


def _completion(index: int, events: Sequence[StreamEvent]) -> Completion:
    text: list[str] = []
    reasoning: list[str] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    calls: list[ToolCall] = []
    scores: list[TokenLogprob | None] = []
    left_out: tuple[str, ...] = ()
    for event in events:
        token_ids.extend(event.token_ids)
        logprobs.extend(event.logprobs or ())
        scores.extend(event.prompt_logprobs or ())
        if isinstance(event, ChatEvent):
            reasoning.append(event.reasoning)
            calls.extend(event.tool_calls)
            left_out = event.left_out
        text.append(event.text)
    return Completion(
        text="".join(text),
        token_ids=tuple(token_ids),
        finish_reason=events[-1].finish_reason or FinishReason.ERROR,
        logprobs=tuple(logprobs) or None,
        cached_tokens=events[0].cached_tokens,
        index=index,
        reasoning="".join(reasoning),
        tool_calls=tuple(calls),
        prompt_logprobs=tuple(scores) or None,
        left_out=left_out,
    )
