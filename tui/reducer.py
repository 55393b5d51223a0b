"""The chat's one state machine: a state and an event give the next state and effects.

Pure: no clock, no identifiers of its own, no Textual, no network and no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rvllm_local.history.types import MessageState
from rvllm_local.tui import events
from rvllm_local.tui.effects import (
    CancelReply,
    DeleteMessage,
    Effect,
    MoveToMemory,
    Notify,
    ReturnPrompt,
    UpdateChat,
)
from rvllm_local.tui.payload import is_summary_prompt, typed_text
from rvllm_local.tui.reply import (
    Step,
    as_message,
    finish_reply,
    grow,
    measure,
    prefill_progress,
    read_stats,
    save_partial,
)
from rvllm_local.tui.requests import (
    BUSY,
    compacted,
    continued,
    edited,
    regenerated,
    return_queue,
    send_next,
    submitted,
    unqueued,
)
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import (
    ChatSession,
    ConnectionState,
    LiveReply,
    QueuedPrompt,
    ReplyStats,
    TokenCounts,
)


def reduce(session: ChatSession, event: events.Event) -> Step:
    """The next state, and the effects in the order in which they must be done."""
    return _STEPS[type(event)](session, event)


# While it is written


def _began(session: ChatSession, event: events.ReplyBegan) -> Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    live = replace(session.live, request_id=event.request_id)
    return replace(session, live=live), ()


def _grew(session: ChatSession, event: events.ReplyGrew) -> Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()  # a reply that was stopped still had words on the way
    live = grow(live, event)
    return save_partial(replace(session, live=live, stats=measure(live)), event.at)


def _usage(session: ChatSession, event: events.UsageReceived) -> Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()
    counts = TokenCounts(
        event.prompt_tokens,
        event.output_tokens,
        event.cached_tokens,
        event.accepted_drafts,
        event.rejected_drafts,
        event.speed,
    )
    live = replace(live, usage=counts)
    return replace(session, live=live, stats=measure(live)), ()


def _finished(session: ChatSession, event: events.ReplyFinished) -> Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = finish_reply(session, MessageState.DONE)
    if event.reason == "length":
        text = "the reply ended at max_tokens; /continue goes on, Ctrl+T raises it"
        effects = (*effects, Notify(text))
    session, more = send_next(session, event.at)
    return session, (*effects, *more)


def _failed(session: ChatSession, event: events.ReplyFailed) -> Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()
    if event.is_server_gone and _can_wait(live):
        return _wait_for_server(session, live, event.error)
    session, effects = finish_reply(session, MessageState.FAILED, event.error)
    if session.queue:
        session, returned = return_queue(session)
        effects = (*effects, *returned)
    return session, effects


def _can_wait(live: LiveReply) -> bool:
    """Whether the prompt can stand in line again: typed, last, and unanswered."""
    last = live.before[-1].id if live.before else None
    is_last = live.is_new_prompt and live.prompt.parent_id == last
    return is_last and not live.size and not is_summary_prompt(live.prompt)


def _wait_for_server(
    session: ChatSession,
    live: LiveReply,
    error: str,
) -> Step:
    """The prompt goes back to the head of the line, and is sent to the next server."""
    waiting = QueuedPrompt(
        live.prompt.text, live.prompt.id, live.reply_id, live.prompt.figures
    )
    session = replace(
        session,
        live=None,
        messages=live.before,
        queue=(waiting, *session.queue),
        connection=ConnectionState.LOST,
        connection_text=error,
    )
    return session, (DeleteMessage(live.prompt.id),)


def _stopped(session: ChatSession, _event: events.ReplyStopped) -> Step:
    live = session.live
    if live is None:
        return session, ()
    effects: tuple[Effect, ...] = (CancelReply(live.reply_id),)
    if live.size:
        session, more = finish_reply(session, MessageState.STOPPED)
        effects = (*effects, *more)
    else:
        session = replace(session, live=None, messages=live.before)
        if live.is_new_prompt:
            effects = (*effects, DeleteMessage(live.prompt.id))
            if not is_summary_prompt(live.prompt):
                effects = (*effects, ReturnPrompt(typed_text(live.prompt)))
    session, more = return_queue(session)
    return session, (*effects, *more)


def _ticked(session: ChatSession, event: events.ClockTicked) -> Step:
    return save_partial(session, event.at)


# The chat


def _opened(session: ChatSession, event: events.ChatOpened) -> Step:
    if session.live is not None:
        return session, (BUSY,)
    served = [info.id for info in session.models]
    stats = ReplyStats()
    for message in event.messages:
        if message.role == "assistant":
            stats = read_stats(message.figures)
    opened = replace(
        session,
        chat=event.chat,
        messages=event.messages,
        siblings=event.siblings,
        is_temporary=event.is_temporary,
        is_kept=True,
        model=event.chat.model if event.chat.model in served else session.model,
        stats=stats,
    )
    return opened, ()


def _started(session: ChatSession, event: events.ChatStarted) -> Step:
    if session.live is not None:
        return session, (BUSY,)
    started = replace(
        session,
        chat=event.chat,
        messages=(),
        siblings={},
        stats=ReplyStats(),
        is_kept=False,
        is_temporary=event.is_temporary,
    )
    return started, ()


def _changed(session: ChatSession, event: events.ChatChanged) -> Step:
    model = event.values.get("model", session.model)
    chat = replace(session.chat, **event.values)
    effects = (UpdateChat(chat.id, event.values),) if session.is_kept else ()
    return replace(session, chat=chat, model=model), effects


def _saving_failed(session: ChatSession, event: events.SavingFailed) -> Step:
    if session.is_temporary:
        return session, (Notify(event.error, "error"),)
    live = session.live
    thread = session.messages
    if live is not None and live.saved_at is not None:
        thread = (*thread, as_message(session, live, MessageState.PARTIAL))
    session = replace(session, is_temporary=True)
    told = Notify(f"{event.error} This chat goes on unsaved.", "error")
    return session, (MoveToMemory(session.chat, thread), told)


def _siblings(session: ChatSession, event: events.SiblingsRead) -> Step:
    if event.chat_id != session.chat.id:
        return session, ()
    return replace(session, siblings=event.siblings), ()


# The server


def _connection(session: ChatSession, event: events.ConnectionChanged) -> Step:
    session = replace(session, connection=event.connection, connection_text=event.text)
    return send_next(session, event.at)


def _models(session: ChatSession, event: events.ModelsListed) -> Step:
    ids = [info.id for info in event.models]
    model = session.model
    if model not in ids and session.chat.model in ids:
        model = session.chat.model
    elif model not in ids:
        served = [info.id for info in event.models if info.served]
        model = served[0] if served else model
    effects: tuple[Effect, ...] = ()
    if session.model and model != session.model:
        gone = clean_line(session.model, 60)
        text = f"{gone} is not served any more; {clean_line(model, 60)} answers now"
        effects = (Notify(text, "warning"),)
    return replace(session, models=event.models, model=model), effects


def _engine(session: ChatSession, event: events.EngineSeen) -> Step:
    live = session.live
    if live is not None and live.first_at is None:
        live = replace(live, progress=prefill_progress(event.view) or live.progress)
    return replace(session, engine=event.view, live=live), ()


_STEPS: dict[type, Callable[[ChatSession, Any], Step]] = {
    events.PromptSubmitted: submitted,
    events.PromptUnqueued: unqueued,
    events.ReplyRegenerated: regenerated,
    events.PromptEdited: edited,
    events.CompactionAsked: compacted,
    events.ReplyContinued: continued,
    events.ReplyBegan: _began,
    events.ReplyGrew: _grew,
    events.UsageReceived: _usage,
    events.ReplyFinished: _finished,
    events.ReplyFailed: _failed,
    events.ReplyStopped: _stopped,
    events.ClockTicked: _ticked,
    events.ChatOpened: _opened,
    events.ChatStarted: _started,
    events.ChatChanged: _changed,
    events.SavingFailed: _saving_failed,
    events.ConnectionChanged: _connection,
    events.ModelsListed: _models,
    events.EngineSeen: _engine,
    events.SiblingsRead: _siblings,
}
