"""The reply that is being written: how it grows, is measured, saved and finished. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from rvllm_local.history.types import ChatMessage, MessageState, ToolCall
from rvllm_local.tui.effects import Effect, ReadSiblings, SaveMessage, UpdateMessage
from rvllm_local.tui.events import ReplyGrew
from rvllm_local.tui.payload import (
    COMPACT,
    COMPACT_PROMPT,
    estimate_tokens,
    is_summary_prompt,
)
from rvllm_local.tui.sanitise import grown
from rvllm_local.tui.state import ChatSession, EngineView, LiveReply, ReplyStats

SAVE_EVERY_S = 1.0
# A reply that is shorter tells nothing of the speed: its words come in one or two parts.
LEAST_SPAN_S = 0.2
LEAST_PARTS = 3
_LARGEST = 2**53
Step = tuple[ChatSession, tuple[Effect, ...]]


def measure(live: LiveReply) -> ReplyStats:
    """The reply's measurements so far.

    Tokens are the server's counts where it gave them, else the parts counted here.
    """
    ttft = None if live.first_at is None else live.first_at - live.began
    counts = live.usage
    if counts is None:
        output = live.num_chunks
        speed = _speed(live, output)
        return ReplyStats(
            output_tokens=output or None, tokens_per_second=speed, ttft=ttft
        )
    return ReplyStats(
        counts.prompt,
        counts.cached,
        counts.output or None,
        _speed(live, counts.output) if counts.speed is None else counts.speed,
        ttft,
        counts.accepted_drafts or None,
        counts.rejected_drafts or None,
    )


def _speed(live: LiveReply, num_tokens: int) -> float | None:
    """Tokens a second after the first; None where too little came to tell."""
    if live.first_at is None or live.last_at is None:
        return None
    span = live.last_at - live.first_at
    if span < LEAST_SPAN_S or live.num_chunks < LEAST_PARTS:
        return None
    return (num_tokens - 1) / span


def read_stats(figures: Mapping[str, Any]) -> ReplyStats:
    """The measurements that were kept with a message.

    An imported chat may hold anything: what is no sensible number is left out. After a
    summary the context holds no more than that and what asked for it.
    """
    kept = {}
    for column in fields(ReplyStats):
        value = figures.get(column.name)
        if _is_measured(value):
            kept[column.name] = value
    if figures.get("kind") == COMPACT:
        kept["prompt_tokens"] = estimate_tokens(COMPACT_PROMPT)
    return ReplyStats(**kept)


def _is_measured(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < _LARGEST


def as_message(
    session: ChatSession,
    live: LiveReply,
    state: MessageState,
    error: str = "",
) -> ChatMessage:
    """The live reply as a message of the history."""
    return ChatMessage(
        id=live.reply_id,
        chat_id=session.chat.id,
        parent_id=live.prompt.id,
        role="assistant",
        text=live.text,
        reasoning=live.reasoning,
        tool_calls=live.tool_calls,
        state=state,
        model=live.model or session.model,
        figures=_figures(live, state, error),
    )


def _figures(
    live: LiveReply,
    state: MessageState,
    error: str,
) -> dict[str, Any]:
    stats = measure(live)
    figures: dict[str, Any] = {}
    for column in fields(ReplyStats):
        value = getattr(stats, column.name)
        if value is not None:
            figures[column.name] = round(value, 3)
    if live.reasoning and live.first_at is not None:
        ended = live.thought_until or live.last_at or live.first_at
        figures["thought_s"] = round(ended - live.first_at, 3)
    if error:
        figures["error"] = error
    if state is MessageState.DONE and is_summary_prompt(live.prompt):
        figures["kind"] = COMPACT
    return figures


def grow(live: LiveReply, event: ReplyGrew) -> LiveReply:
    """The reply with more of it."""
    thought_until = live.thought_until
    if thought_until is None and live.reasoning and event.text:
        thought_until = event.at
    return replace(
        live,
        text=grown(live.text, event.text),
        reasoning=grown(live.reasoning, event.reasoning),
        tool_calls=_join_calls(live.tool_calls, event.tool_calls),
        first_at=event.at if live.first_at is None else live.first_at,
        last_at=event.at,
        thought_until=thought_until,
        num_chunks=live.num_chunks + event.num_chunks,
        progress=None,
    )


def _join_calls(
    calls: tuple[ToolCall, ...], more: tuple[ToolCall, ...]
) -> tuple[ToolCall, ...]:
    joined = list(calls)
    for call in more:
        if call.name or not joined:
            joined.append(call)
        else:
            arguments = joined[-1].arguments + call.arguments
            joined[-1] = replace(joined[-1], arguments=arguments)
    return tuple(joined)


def save_partial(session: ChatSession, at: float) -> Step:
    """Write the reply so far: its first words at once, then each second if it grew."""
    live = session.live
    if live is None or live.size == live.saved_size or live.first_at is None:
        return session, ()
    if live.saved_at is not None and at - live.saved_at < SAVE_EVERY_S:
        return session, ()
    effect = _write(live, as_message(session, live, MessageState.PARTIAL))
    live = replace(live, saved_at=at, saved_size=live.size)
    return replace(session, live=live), (effect,)


def finish_reply(
    session: ChatSession,
    state: MessageState,
    error: str = "",
) -> Step:
    """The live reply becomes the last message."""
    live = session.live
    assert live is not None
    message = as_message(session, live, state, error)
    finished = replace(
        session,
        live=None,
        messages=(*session.messages, message),
        stats=read_stats(message.figures),
    )
    return finished, (_write(live, message), ReadSiblings(session.chat.id))


def _write(live: LiveReply, message: ChatMessage) -> Effect:
    return SaveMessage(message) if live.saved_at is None else UpdateMessage(message)


def prefill_progress(view: EngineView) -> tuple[int, int] | None:
    """Prompt tokens computed and all of them, of the request that is furthest."""
    best = None
    for request in view.requests:
        if request.state not in ("prefill", "waiting") or not request.prompt_tokens:
            continue
        if best is None or request.computed_tokens > best[0]:
            best = (request.computed_tokens, request.prompt_tokens)
    return best
