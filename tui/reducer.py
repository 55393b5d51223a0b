"""The chat's one state machine: a state and an event give the next state and what must be done.

Pure: no clock, no identifiers of its own, no Textual, no network and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall
from rvllm_local.tui.effects import (
    CancelReply,
    DeleteMessage,
    Effect,
    Generate,
    MoveToMemory,
    Notify,
    ReadSiblings,
    ReturnPrompt,
    SaveChat,
    SaveMessage,
    UpdateChat,
    UpdateMessage,
)
from rvllm_local.tui.events import (
    ChatChanged,
    ChatOpened,
    ChatStarted,
    ClockTicked,
    ConnectionChanged,
    EngineSeen,
    Event,
    ModelsListed,
    PromptEdited,
    PromptSubmitted,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    ReplyRegenerated,
    ReplyStopped,
    SavingFailed,
    SiblingsRead,
    UsageReceived,
)
from rvllm_local.tui.sanitise import grown
from rvllm_local.tui.state import ChatSession, ConnectionState, LiveReply, ReplyStats

SAVE_EVERY_S = 1.0
TITLE_LENGTH = 60
_Step = tuple[ChatSession, tuple[Effect, ...]]


def reduce(session: ChatSession, event: Event) -> _Step:
    """The next state, and the effects in the order in which they must be done."""
    return _STEPS[type(event)](session, event)


def payload(
    chat: Chat, messages: tuple[ChatMessage, ...]
) -> tuple[Mapping[str, str], ...]:
    """The conversation as the API takes it. Replies without text are left out, and neighbours of one role are joined."""
    turns: list[dict[str, str]] = (
        [{"role": "system", "content": chat.system}] if chat.system.strip() else []
    )
    for message in messages:
        if not message.text.strip():
            continue
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += "\n\n" + message.text
        else:
            turns.append({"role": message.role, "content": message.text})
    return tuple(turns)


def stats_of(live: LiveReply) -> ReplyStats:
    """The reply's measurements so far: the server's counts where it gave them, else the chunks counted here."""
    prompt, output, cached = live.usage or (None, None, None)
    output = live.num_chunks if output is None else output
    speed = None
    if (
        live.first_at is not None
        and live.last_at is not None
        and output > 1
        and live.last_at > live.first_at
    ):
        speed = (output - 1) / (live.last_at - live.first_at)
    ttft = None if live.first_at is None else live.first_at - live.began
    return ReplyStats(prompt, cached, output or None, speed, ttft)


def reply_of(
    live: LiveReply, chat_id: str, model: str, state: MessageState, error: str = ""
) -> ChatMessage:
    """The live reply as a message of the history."""
    stats = stats_of(live)
    kept: dict[str, Any] = {
        name: round(value, 3)
        for name in (
            "prompt_tokens",
            "cached_tokens",
            "output_tokens",
            "tokens_per_second",
            "ttft",
        )
        if (value := getattr(stats, name)) is not None
    }
    if live.reasoning and live.first_at is not None:
        kept["thought_s"] = round(
            (live.thought_until or live.last_at or live.first_at) - live.first_at, 3
        )
    if error:
        kept["error"] = error
    texts = (live.text, live.reasoning)
    return ChatMessage(
        live.reply_id,
        chat_id,
        live.prompt.id,
        "assistant",
        *texts,
        live.tool_calls,
        state,
        model,
        kept,
    )


def _start(
    session: ChatSession,
    prompt: ChatMessage,
    reply_id: str,
    thread: tuple[ChatMessage, ...],
    at: float,
    is_new: bool,
) -> _Step:
    """Ask for a reply to `prompt`, the last of `thread`. The prompt is kept before the request is made."""
    live = LiveReply(reply_id, prompt, is_new, session.messages, at)
    effects: list[Effect] = []
    chat = session.chat
    if not session.is_kept:
        chat = replace(
            chat, title=chat.title or _title(prompt.text), model=session.model
        )
        effects.append(SaveChat(chat))
    if is_new:
        effects.append(SaveMessage(prompt))
    effects.append(
        Generate(reply_id, session.model, payload(chat, thread), dict(chat.params))
    )
    return replace(session, chat=chat, messages=thread, live=live, is_kept=True), tuple(
        effects
    )


def _refusal(session: ChatSession, text: str) -> _Step | None:
    """Why no reply can be asked for now; the prompt goes back to the composer."""
    back = (ReturnPrompt(text),) if text else ()
    if session.live is not None:
        return session, (
            *back,
            Notify("a reply is being written; Esc stops it", "warning"),
        )
    if session.connection is not ConnectionState.READY:
        why = session.connection_text or "the server is not there"
        return session, (*back, Notify(f"not sent: {why}", "warning"))
    return None


def _submitted(session: ChatSession, event: PromptSubmitted) -> _Step:
    if not event.text.strip():
        return session, ()
    if refused := _refusal(session, event.text):
        return refused
    parent = session.messages[-1].id if session.messages else None
    prompt = ChatMessage(event.prompt_id, session.chat.id, parent, "user", event.text)
    return _start(
        session, prompt, event.reply_id, (*session.messages, prompt), event.at, True
    )


def _regenerated(session: ChatSession, event: ReplyRegenerated) -> _Step:
    if refused := _refusal(session, ""):
        return refused
    place = _place(session, event.message_id)
    while place >= 0 and session.messages[place].role != "user":
        place -= 1
    if place < 0:
        return session, (Notify("there is no prompt to answer again", "warning"),)
    thread = session.messages[: place + 1]
    return _start(session, thread[-1], event.reply_id, thread, event.at, False)


def _edited(session: ChatSession, event: PromptEdited) -> _Step:
    if refused := _refusal(session, event.text):
        return refused
    place = _place(session, event.message_id)
    if place < 0 or session.messages[place].role != "user":
        return session, (
            ReturnPrompt(event.text),
            Notify("only a prompt of yours can be edited", "warning"),
        )
    old = session.messages[place]
    prompt = ChatMessage(
        event.prompt_id, session.chat.id, old.parent_id, "user", event.text
    )
    return _start(
        session,
        prompt,
        event.reply_id,
        (*session.messages[:place], prompt),
        event.at,
        True,
    )


def _place(session: ChatSession, message_id: str) -> int:
    return next(
        (place for place, one in enumerate(session.messages) if one.id == message_id),
        -1,
    )


def _title(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def _delta(session: ChatSession, event: ReplyGrew) -> _Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()  # a reply that was stopped still had words on the way
    thought_until = live.thought_until
    if thought_until is None and live.reasoning and event.text:
        thought_until = event.at
    live = replace(
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
    return _save(replace(session, live=live, stats=stats_of(live)), event.at)


def _join_calls(
    calls: tuple[ToolCall, ...], more: tuple[ToolCall, ...]
) -> tuple[ToolCall, ...]:
    joined = list(calls)
    for call in more:
        if call.name or not joined:
            joined.append(call)
        else:
            joined[-1] = replace(
                joined[-1], arguments=joined[-1].arguments + call.arguments
            )
    return tuple(joined)


def _save(session: ChatSession, at: float) -> _Step:
    """Write the partial reply if it grew and the last writing is a second old; the first words at once."""
    live = session.live
    if live is None or live.size == live.saved_size or live.first_at is None:
        return session, ()
    if live.saved_at is not None and at - live.saved_at < SAVE_EVERY_S:
        return session, ()
    message = reply_of(live, session.chat.id, session.model, MessageState.PARTIAL)
    effect = SaveMessage(message) if live.saved_at is None else UpdateMessage(message)
    return replace(session, live=replace(live, saved_at=at, saved_size=live.size)), (
        effect,
    )


def _usage(session: ChatSession, event: UsageReceived) -> _Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()
    live = replace(
        live, usage=(event.prompt_tokens, event.output_tokens, event.cached_tokens)
    )
    return replace(session, live=live, stats=stats_of(live)), ()


def _finished(session: ChatSession, event: ReplyFinished) -> _Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = _settle(session, MessageState.DONE)
    if event.reason == "length":
        effects = (
            *effects,
            Notify(
                "the reply ended at max_tokens; ask it to go on, or raise it with Ctrl+T"
            ),
        )
    return session, effects


def _failed(session: ChatSession, event: ReplyFailed) -> _Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = _settle(session, MessageState.FAILED, event.error)
    return session, (*effects, Notify(event.error, "error"))


def _stopped(session: ChatSession, event: ReplyStopped) -> _Step:
    live = session.live
    if live is None:
        return session, ()
    if live.size:
        session, effects = _settle(session, MessageState.STOPPED)
        return session, (CancelReply(live.reply_id), *effects)
    effects = (CancelReply(live.reply_id),)
    if live.is_new_prompt:
        effects += (DeleteMessage(live.prompt.id), ReturnPrompt(live.prompt.text))
    return replace(session, live=None, messages=live.before), effects


def _settle(session: ChatSession, state: MessageState, error: str = "") -> _Step:
    live = session.live
    assert live is not None
    message = reply_of(live, session.chat.id, session.model, state, error)
    effect = SaveMessage(message) if live.saved_at is None else UpdateMessage(message)
    settled = replace(
        session,
        live=None,
        messages=(*session.messages, message),
        stats=stats_of(live),
    )
    return settled, (effect, ReadSiblings(session.chat.id))


def _ticked(session: ChatSession, event: ClockTicked) -> _Step:
    return _save(session, event.at)


def _opened(session: ChatSession, event: ChatOpened) -> _Step:
    if session.live is not None:
        return session, (Notify("a reply is being written; Esc stops it", "warning"),)
    last = next(
        (one for one in reversed(event.messages) if one.role == "assistant"), None
    )
    names = (
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "tokens_per_second",
        "ttft",
    )
    known = (
        {name: last.figures[name] for name in names if name in last.figures}
        if last
        else {}
    )
    model = (
        event.chat.model
        if any(one.id == event.chat.model for one in session.models)
        else session.model
    )
    return replace(
        session,
        chat=event.chat,
        messages=event.messages,
        siblings=event.siblings,
        is_temporary=event.is_temporary,
        is_kept=True,
        model=model,
        stats=ReplyStats(**known),
    ), ()


def _started(session: ChatSession, event: ChatStarted) -> _Step:
    if session.live is not None:
        return session, (Notify("a reply is being written; Esc stops it", "warning"),)
    fresh = replace(
        session, chat=event.chat, messages=(), siblings={}, stats=ReplyStats()
    )
    return replace(fresh, is_kept=False, is_temporary=event.is_temporary), ()


def _changed(session: ChatSession, event: ChatChanged) -> _Step:
    model = event.values.get("model", session.model)
    chat = replace(session.chat, **event.values)
    effects = (UpdateChat(chat.id, event.values),) if session.is_kept else ()
    return replace(session, chat=chat, model=model), effects


def _saving_failed(session: ChatSession, event: SavingFailed) -> _Step:
    if session.is_temporary:
        return session, (Notify(event.error, "error"),)
    live = session.live
    thread = (
        session.messages
        if live is None
        else (
            *session.messages,
            reply_of(live, session.chat.id, session.model, MessageState.PARTIAL),
        )
    )
    thread = thread if live is None or live.saved_at is not None else session.messages
    session = replace(session, is_temporary=True)
    told = Notify(f"{event.error} This chat goes on unsaved.", "error")
    return session, (MoveToMemory(session.chat, thread), told)


def _siblings(session: ChatSession, event: SiblingsRead) -> _Step:
    return (
        replace(session, siblings=event.siblings)
        if event.chat_id == session.chat.id
        else session
    ), ()


def _connection(session: ChatSession, event: ConnectionChanged) -> _Step:
    return replace(session, connection=event.connection, connection_text=event.text), ()


def _models(session: ChatSession, event: ModelsListed) -> _Step:
    ids = [one.id for one in event.models]
    model = session.model
    if model not in ids:
        model = (
            session.chat.model
            if session.chat.model in ids
            else next((one.id for one in event.models if one.served), model)
        )
    return replace(session, models=event.models, model=model), ()


def _engine(session: ChatSession, event: EngineSeen) -> _Step:
    live = session.live
    if live is not None and live.first_at is None:
        mine = [
            one for one in event.view.requests if one.state in ("prefill", "waiting")
        ]
        best = max(mine, key=lambda one: one.computed_tokens, default=None)
        if best is not None and best.prompt_tokens:
            live = replace(live, progress=(best.computed_tokens, best.prompt_tokens))
    return replace(session, engine=event.view, live=live), ()


_STEPS: dict[type, Callable[[ChatSession, Any], _Step]] = {
    PromptSubmitted: _submitted,
    ReplyRegenerated: _regenerated,
    PromptEdited: _edited,
    ReplyGrew: _delta,
    UsageReceived: _usage,
    ReplyFinished: _finished,
    ReplyFailed: _failed,
    ReplyStopped: _stopped,
    ClockTicked: _ticked,
    ChatOpened: _opened,
    ChatStarted: _started,
    ChatChanged: _changed,
    SavingFailed: _saving_failed,
    ConnectionChanged: _connection,
    ModelsListed: _models,
    EngineSeen: _engine,
    SiblingsRead: _siblings,
}
