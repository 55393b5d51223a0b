"""The chat's one state machine: a state and an event give the next state and effects.

Pure: no clock, no identifiers of its own, no Textual, no network and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.history.types import ChatMessage, MessageState
from rvllm_local.tui import events
from rvllm_local.tui.effects import (
    CancelReply,
    DeleteMessage,
    Effect,
    Generate,
    MoveToMemory,
    Notify,
    ReturnPrompt,
    SaveChat,
    SaveMessage,
    UpdateChat,
)
from rvllm_local.tui.payload import (
    COMPACT_PROMPT,
    fit_for_summary,
    is_summary_prompt,
    make_title,
    payload,
    typed_text,
)
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
from rvllm_local.tui.state import (
    ChatSession,
    ConnectionState,
    LiveReply,
    QueuedPrompt,
    ReplyStats,
)

_BUSY = Notify("a reply is being written; Esc stops it", "warning")


def reduce(session: ChatSession, event: events.Event) -> Step:
    """The next state, and the effects in the order in which they must be done."""
    return _STEPS[type(event)](session, event)


# Asking for a reply


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
    live = LiveReply(reply_id, prompt, is_new, session.messages, at)
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
    started = replace(session, chat=chat, messages=thread, live=live, is_kept=True)
    return started, tuple(effects)


def _prompt(
    session: ChatSession,
    prompt_id: str,
    parent_id: str | None,
    text: str,
    figures: Mapping[str, Any],
) -> ChatMessage:
    chat_id = session.chat.id
    return ChatMessage(prompt_id, chat_id, parent_id, "user", text, figures=figures)


def _is_free(session: ChatSession) -> bool:
    return session.live is None and session.connection is ConnectionState.READY


def _refusal(session: ChatSession, text: str) -> Step | None:
    """Why no reply can be asked for now; the prompt goes back to the composer."""
    if _is_free(session):
        return None
    effects: list[Effect] = [ReturnPrompt(text)] if text else []
    reason = session.connection_text or "the server is not there"
    is_busy = session.live is not None
    effects.append(_BUSY if is_busy else Notify(f"not sent: {reason}", "warning"))
    return session, tuple(effects)


def _submitted(session: ChatSession, event: events.PromptSubmitted) -> Step:
    if not event.text.strip():
        return session, ()
    waiting = QueuedPrompt(event.text, event.prompt_id, event.reply_id, event.figures)
    queued = replace(session, queue=(*session.queue, waiting))
    return _send_next(queued, event.at)


def _send_next(session: ChatSession, at: float) -> Step:
    """Send the first prompt of the line, if the chat is free."""
    if not session.queue or not _is_free(session):
        return session, ()
    waiting = session.queue[0]
    session = replace(session, queue=session.queue[1:])
    parent = session.messages[-1].id if session.messages else None
    prompt = _prompt(session, waiting.prompt_id, parent, waiting.text, waiting.figures)
    thread = (*session.messages, prompt)
    return _start(session, prompt, waiting.reply_id, thread, at, True)


def _unqueued(session: ChatSession, _event: events.PromptUnqueued) -> Step:
    """The last prompt of the line goes back to the composer."""
    if not session.queue:
        return session, ()
    text = session.queue[-1].typed
    return replace(session, queue=session.queue[:-1]), (ReturnPrompt(text),)


def _return_queue(session: ChatSession) -> Step:
    """All that waits goes back to the composer: who stops wants nothing to go on."""
    if not session.queue:
        return session, ()
    text = "\n\n".join(waiting.typed for waiting in session.queue)
    return replace(session, queue=()), (ReturnPrompt(text),)


def _regenerated(session: ChatSession, event: events.ReplyRegenerated) -> Step:
    if refusal := _refusal(session, ""):
        return refusal
    index = _index(session, event.message_id)
    while index >= 0 and session.messages[index].role != "user":
        index -= 1
    if index < 0:
        return session, (Notify("there is no prompt to answer again", "warning"),)
    thread = session.messages[: index + 1]
    return _start(session, thread[-1], event.reply_id, thread, event.at, False)


def _edited(session: ChatSession, event: events.PromptEdited) -> Step:
    if refusal := _refusal(session, event.text):
        return refusal
    index = _index(session, event.message_id)
    if index < 0 or session.messages[index].role != "user":
        problem = Notify("only a prompt of yours can be edited", "warning")
        return session, (ReturnPrompt(event.text), problem)
    parent = session.messages[index].parent_id
    prompt = _prompt(session, event.prompt_id, parent, event.text, event.figures)
    thread = (*session.messages[:index], prompt)
    return _start(session, prompt, event.reply_id, thread, event.at, True)


def _compacted(session: ChatSession, event: events.CompactionAsked) -> Step:
    """Ask for a summary; later turns go on from it, and nothing is deleted."""
    if refusal := _refusal(session, ""):
        return refusal
    if not session.messages:
        return session, (Notify("there is nothing to summarise yet", "warning"),)
    parent, figures = session.messages[-1].id, {"kind": "compact"}
    prompt = _prompt(session, event.prompt_id, parent, COMPACT_PROMPT, figures)
    thread = (*session.messages, prompt)
    started, effects = _start(session, prompt, event.reply_id, thread, event.at, True)
    request = effects[-1]
    assert isinstance(request, Generate)
    recent = fit_for_summary(session.messages, session.context_length)
    messages = payload(session.chat, (*recent, prompt))
    return started, (*effects[:-1], replace(request, messages=messages))


def _index(session: ChatSession, message_id: str) -> int:
    for index, message in enumerate(session.messages):
        if message.id == message_id:
            return index
    return -1


# While it is written


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
    usage = (event.prompt_tokens, event.output_tokens, event.cached_tokens)
    live = replace(live, usage=usage)
    return replace(session, live=live, stats=measure(live)), ()


def _finished(session: ChatSession, event: events.ReplyFinished) -> Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = finish_reply(session, MessageState.DONE)
    if event.reason == "length":
        text = "the reply ended at max_tokens; /continue goes on, Ctrl+T raises it"
        effects = (*effects, Notify(text))
    session, more = _send_next(session, event.at)
    return session, (*effects, *more)


def _failed(session: ChatSession, event: events.ReplyFailed) -> Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()
    if event.is_server_gone and _can_wait(live):
        return _wait_for_server(session, live, event.error)
    session, effects = finish_reply(session, MessageState.FAILED, event.error)
    if session.queue:
        session, returned = _return_queue(session)
        effects = (*effects, *returned)
    return session, effects


def _can_wait(live: LiveReply) -> bool:
    """Whether the prompt can stand in line again: typed, last, and unanswered."""
    last = live.before[-1].id if live.before else None
    is_last = live.is_new_prompt and live.prompt.parent_id == last
    return is_last and not live.size and not is_summary_prompt(live.prompt)


def _wait_for_server(session: ChatSession, live: LiveReply, error: str) -> Step:
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
    session, more = _return_queue(session)
    return session, (*effects, *more)


def _ticked(session: ChatSession, event: events.ClockTicked) -> Step:
    return save_partial(session, event.at)


# The chat


def _opened(session: ChatSession, event: events.ChatOpened) -> Step:
    if session.live is not None:
        return session, (_BUSY,)
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
        return session, (_BUSY,)
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
    return _send_next(session, event.at)


def _models(session: ChatSession, event: events.ModelsListed) -> Step:
    ids = [info.id for info in event.models]
    model = session.model
    if model not in ids and session.chat.model in ids:
        model = session.chat.model
    elif model not in ids:
        served = [info.id for info in event.models if info.served]
        model = served[0] if served else model
    return replace(session, models=event.models, model=model), ()


def _engine(session: ChatSession, event: events.EngineSeen) -> Step:
    live = session.live
    if live is not None and live.first_at is None:
        live = replace(live, progress=prefill_progress(event.view) or live.progress)
    return replace(session, engine=event.view, live=live), ()


_STEPS: dict[type, Callable[[ChatSession, Any], Step]] = {
    events.PromptSubmitted: _submitted,
    events.PromptUnqueued: _unqueued,
    events.ReplyRegenerated: _regenerated,
    events.PromptEdited: _edited,
    events.CompactionAsked: _compacted,
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
