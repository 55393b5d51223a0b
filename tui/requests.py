"""How a reply is asked for: by a prompt, a changed one, or again. Pure steps.

A prompt that cannot be sent now waits in line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui import events
from rvllm_local.tui.effects import (
    Effect,
    Generate,
    Notify,
    ReturnPrompt,
    SaveChat,
    SaveMessage,
)
from rvllm_local.tui.payload import (
    COMPACT,
    COMPACT_PROMPT,
    fit_for_summary,
    make_title,
    payload,
)
from rvllm_local.tui.reply import Step
from rvllm_local.tui.state import (
    ChatSession,
    ConnectionState,
    LiveReply,
    QueuedPrompt,
)

# A server of ours goes on with the last message in place of answering it.
CONTINUING = {"continue_final_message": True}
SUMMARY_TOKENS = 500  # a summary may have so many, however short replies are to be
BUSY = Notify("a reply is being written; Esc stops it", "warning")


def _start(
    session: ChatSession,
    prompt: ChatMessage,
    reply_id: str,
    thread: tuple[ChatMessage, ...],
    at: float,
    is_new: bool,
) -> Step:
    """Ask for a reply to `prompt`, the last of `thread`.

    The prompt is on disk before the request is made.
    """
    live = LiveReply(
        reply_id,
        prompt,
        is_new,
        session.messages,
        at,
    )
    effects: list[Effect] = []
    chat = session.chat
    if not session.is_kept:
        title = chat.title or make_title(prompt.text)
        chat = replace(chat, title=title, model=session.model)
        effects.append(SaveChat(chat))
    if is_new:
        effects.append(SaveMessage(prompt))
    messages = payload(chat, thread)
    effects.append(Generate(reply_id, session.model, messages, dict(chat.params)))
    started = replace(
        session,
        chat=chat,
        messages=thread,
        live=live,
        is_kept=True,
    )
    return started, tuple(effects)


def _prompt(
    session: ChatSession,
    prompt_id: str,
    parent_id: str | None,
    text: str,
    figures: Mapping[str, Any],
) -> ChatMessage:
    chat_id = session.chat.id
    return ChatMessage(
        prompt_id,
        chat_id,
        parent_id,
        "user",
        text,
        figures=figures,
    )


def _is_free(session: ChatSession) -> bool:
    return session.live is None and session.connection is ConnectionState.READY


def _refusal(session: ChatSession, text: str) -> Step | None:
    """Why no reply can be asked for now; the prompt goes back to the composer."""
    if _is_free(session):
        return None
    effects: list[Effect] = [ReturnPrompt(text)] if text else []
    reason = session.connection_text or "the server is not there"
    is_busy = session.live is not None
    effects.append(BUSY if is_busy else Notify(f"not sent: {reason}", "warning"))
    return session, tuple(effects)


def submitted(session: ChatSession, event: events.PromptSubmitted) -> Step:
    """A prompt stands in line, and is sent if nothing is before it."""
    if not event.text.strip():
        return session, ()
    waiting = QueuedPrompt(event.text, event.prompt_id, event.reply_id, event.figures)
    queued = replace(session, queue=(*session.queue, waiting))
    return send_next(queued, event.at)


def send_next(session: ChatSession, at: float) -> Step:
    """Send the first prompt of the line, if the chat is free."""
    if not session.queue or not _is_free(session):
        return session, ()
    waiting = session.queue[0]
    session = replace(session, queue=session.queue[1:])
    parent = session.messages[-1].id if session.messages else None
    prompt = _prompt(
        session,
        waiting.prompt_id,
        parent,
        waiting.text,
        waiting.figures,
    )
    thread = (*session.messages, prompt)
    return _start(
        session,
        prompt,
        waiting.reply_id,
        thread,
        at,
        True,
    )


def unqueued(session: ChatSession, _event: events.PromptUnqueued) -> Step:
    """The last prompt of the line goes back to the composer."""
    if not session.queue:
        return session, ()
    text = session.queue[-1].typed
    return replace(session, queue=session.queue[:-1]), (ReturnPrompt(text),)


def return_queue(session: ChatSession) -> Step:
    """All that waits goes back to the composer: who stops wants nothing to go on."""
    if not session.queue:
        return session, ()
    text = "\n\n".join(waiting.typed for waiting in session.queue)
    return replace(session, queue=()), (ReturnPrompt(text),)


def regenerated(session: ChatSession, event: events.ReplyRegenerated) -> Step:
    """Another reply to a prompt; the one before stays."""
    if refusal := _refusal(session, ""):
        return refusal
    index = _index(session, event.message_id)
    while index >= 0 and session.messages[index].role != "user":
        index -= 1
    if index < 0:
        return session, (Notify("there is no prompt to answer again", "warning"),)
    thread = session.messages[: index + 1]
    return _start(
        session,
        thread[-1],
        event.reply_id,
        thread,
        event.at,
        False,
    )


def continued(session: ChatSession, event: events.ReplyContinued) -> Step:
    """The reply is written on where it ended: its text is part of the request."""
    if refusal := _refusal(session, ""):
        return refusal
    index = _index(session, event.message_id)
    if index < 1 or session.messages[index].role != "assistant":
        return session, (Notify("there is no reply to go on with", "warning"),)
    reply, prompt = session.messages[index], session.messages[index - 1]
    live = LiveReply(
        reply.id,
        prompt,
        is_new_prompt=False,
        before=session.messages,
        began=event.at,
        text=reply.text,
        reasoning=reply.reasoning,
        tool_calls=reply.tool_calls,
        saved_at=event.at,
    )
    live = replace(live, saved_size=live.size)
    messages = payload(session.chat, session.messages[: index + 1])
    params = {**session.chat.params, **CONTINUING}
    request = Generate(reply.id, session.model, messages, params)
    return replace(session, messages=session.messages[:index], live=live), (request,)


def edited(session: ChatSession, event: events.PromptEdited) -> Step:
    """A changed prompt begins a branch."""
    if refusal := _refusal(session, event.text):
        return refusal
    index = _index(session, event.message_id)
    if index < 0 or session.messages[index].role != "user":
        problem = Notify("only a prompt of yours can be edited", "warning")
        return session, (ReturnPrompt(event.text), problem)
    parent = session.messages[index].parent_id
    prompt = _prompt(
        session,
        event.prompt_id,
        parent,
        event.text,
        event.figures,
    )
    thread = (*session.messages[:index], prompt)
    return _start(
        session,
        prompt,
        event.reply_id,
        thread,
        event.at,
        True,
    )


def compacted(session: ChatSession, event: events.CompactionAsked) -> Step:
    """Ask for a summary; later turns go on from it, and nothing is deleted."""
    if refusal := _refusal(session, ""):
        return refusal
    if not session.messages:
        return session, (Notify("there is nothing to summarise yet", "warning"),)
    parent, figures = session.messages[-1].id, {"kind": COMPACT}
    prompt = _prompt(
        session,
        event.prompt_id,
        parent,
        COMPACT_PROMPT,
        figures,
    )
    thread = (*session.messages, prompt)
    started, effects = _start(
        session,
        prompt,
        event.reply_id,
        thread,
        event.at,
        True,
    )
    request = effects[-1]
    assert isinstance(request, Generate)
    recent = fit_for_summary(session.messages, session.context_length)
    messages = payload(session.chat, (*recent, prompt))
    params = dict(request.params)
    if "max_tokens" in params:  # a summary that is cut loses what it sums up
        params["max_tokens"] = max(params["max_tokens"], SUMMARY_TOKENS)
    request = replace(request, messages=messages, params=params)
    return started, (*effects[:-1], request)


def _index(session: ChatSession, message_id: str) -> int:
    for index, message in enumerate(session.messages):
        if message.id == message_id:
            return index
    return -1
