"""The chat's one state machine: a state and an event give the next state and what must be done.

Pure: no clock, no identifiers of its own, no Textual, no network and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.history.types import Chat, Message, MessageState, ToolCall
from rvllm_local.tui import state as s
from rvllm_local.tui.sanitise import grown

SAVE_EVERY_S = 1.0
TITLE_LENGTH = 60
_Step = tuple[s.Session, tuple[s.Effect, ...]]


def reduce(session: s.Session, event: s.Event) -> _Step:
    """The next state, and the effects in the order in which they must be done."""
    return _STEPS[type(event)](session, event)


def payload(chat: Chat, messages: tuple[Message, ...]) -> tuple[Mapping[str, str], ...]:
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


def figures_of(live: s.Live) -> s.Figures:
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
    return s.Figures(prompt, cached, output or None, speed, ttft)


def reply_of(
    live: s.Live, chat_id: str, model: str, state: MessageState, error: str = ""
) -> Message:
    """The live reply as a message of the history."""
    figures = figures_of(live)
    kept: dict[str, Any] = {
        name: round(value, 3)
        for name in (
            "prompt_tokens",
            "cached_tokens",
            "output_tokens",
            "tokens_per_second",
            "ttft",
        )
        if (value := getattr(figures, name)) is not None
    }
    if live.reasoning and live.first_at is not None:
        kept["thought_s"] = round(
            (live.thought_until or live.last_at or live.first_at) - live.first_at, 3
        )
    if error:
        kept["error"] = error
    texts = (live.text, live.reasoning)
    return Message(
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
    session: s.Session,
    prompt: Message,
    reply_id: str,
    thread: tuple[Message, ...],
    at: float,
    is_new: bool,
) -> _Step:
    """Ask for a reply to `prompt`, the last of `thread`. The prompt is kept before the request is made."""
    live = s.Live(reply_id, prompt, is_new, session.messages, at)
    effects: list[s.Effect] = []
    chat = session.chat
    if not session.is_kept:
        chat = replace(
            chat, title=chat.title or _title(prompt.text), model=session.model
        )
        effects.append(s.KeepChat(chat))
    if is_new:
        effects.append(s.KeepMessage(prompt))
    effects.append(
        s.Generate(reply_id, session.model, payload(chat, thread), dict(chat.params))
    )
    return replace(session, chat=chat, messages=thread, live=live, is_kept=True), tuple(
        effects
    )


def _refusal(session: s.Session, text: str) -> _Step | None:
    """Why no reply can be asked for now; the prompt goes back to the composer."""
    back = (s.ReturnPrompt(text),) if text else ()
    if session.live is not None:
        return session, (
            *back,
            s.Tell("a reply is being written; Esc stops it", "warning"),
        )
    if session.link is not s.Link.READY:
        why = session.link_text or "the server is not there"
        return session, (*back, s.Tell(f"not sent: {why}", "warning"))
    return None


def _submitted(session: s.Session, event: s.Submitted) -> _Step:
    if not event.text.strip():
        return session, ()
    if refused := _refusal(session, event.text):
        return refused
    parent = session.messages[-1].id if session.messages else None
    prompt = Message(event.prompt_id, session.chat.id, parent, "user", event.text)
    return _start(
        session, prompt, event.reply_id, (*session.messages, prompt), event.at, True
    )


def _regenerated(session: s.Session, event: s.Regenerated) -> _Step:
    if refused := _refusal(session, ""):
        return refused
    place = _place(session, event.message_id)
    while place >= 0 and session.messages[place].role != "user":
        place -= 1
    if place < 0:
        return session, (s.Tell("there is no prompt to answer again", "warning"),)
    thread = session.messages[: place + 1]
    return _start(session, thread[-1], event.reply_id, thread, event.at, False)


def _edited(session: s.Session, event: s.Edited) -> _Step:
    if refused := _refusal(session, event.text):
        return refused
    place = _place(session, event.message_id)
    if place < 0 or session.messages[place].role != "user":
        return session, (
            s.ReturnPrompt(event.text),
            s.Tell("only a prompt of yours can be edited", "warning"),
        )
    old = session.messages[place]
    prompt = Message(
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


def _place(session: s.Session, message_id: str) -> int:
    return next(
        (place for place, one in enumerate(session.messages) if one.id == message_id),
        -1,
    )


def _title(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def _delta(session: s.Session, event: s.Delta) -> _Step:
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
    return _save(replace(session, live=live, figures=figures_of(live)), event.at)


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


def _save(session: s.Session, at: float) -> _Step:
    """Write the partial reply if it grew and the last writing is a second old; the first words at once."""
    live = session.live
    if live is None or live.size == live.saved_size or live.first_at is None:
        return session, ()
    if live.saved_at is not None and at - live.saved_at < SAVE_EVERY_S:
        return session, ()
    message = reply_of(live, session.chat.id, session.model, MessageState.PARTIAL)
    effect = (
        s.KeepMessage(message) if live.saved_at is None else s.UpdateMessage(message)
    )
    return replace(session, live=replace(live, saved_at=at, saved_size=live.size)), (
        effect,
    )


def _usage(session: s.Session, event: s.UsageTold) -> _Step:
    live = session.live
    if live is None or live.reply_id != event.reply_id:
        return session, ()
    live = replace(
        live, usage=(event.prompt_tokens, event.output_tokens, event.cached_tokens)
    )
    return replace(session, live=live, figures=figures_of(live)), ()


def _finished(session: s.Session, event: s.Finished) -> _Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = _settle(session, MessageState.DONE)
    if event.reason == "length":
        effects = (
            *effects,
            s.Tell(
                "the reply ended at max_tokens; ask it to go on, or raise it with Ctrl+T"
            ),
        )
    return session, effects


def _failed(session: s.Session, event: s.Failed) -> _Step:
    if session.live is None or session.live.reply_id != event.reply_id:
        return session, ()
    session, effects = _settle(session, MessageState.FAILED, event.error)
    return session, (*effects, s.Tell(event.error, "error"))


def _stopped(session: s.Session, event: s.Stopped) -> _Step:
    live = session.live
    if live is None:
        return session, ()
    if live.size:
        session, effects = _settle(session, MessageState.STOPPED)
        return session, (s.Abort(live.reply_id), *effects)
    effects = (s.Abort(live.reply_id),)
    if live.is_new_prompt:
        effects += (s.DropMessage(live.prompt.id), s.ReturnPrompt(live.prompt.text))
    return replace(session, live=None, messages=live.before), effects


def _settle(session: s.Session, state: MessageState, error: str = "") -> _Step:
    live = session.live
    assert live is not None
    message = reply_of(live, session.chat.id, session.model, state, error)
    effect = (
        s.KeepMessage(message) if live.saved_at is None else s.UpdateMessage(message)
    )
    settled = replace(
        session,
        live=None,
        messages=(*session.messages, message),
        figures=figures_of(live),
    )
    return settled, (effect, s.ReadSiblings(session.chat.id))


def _ticked(session: s.Session, event: s.Ticked) -> _Step:
    return _save(session, event.at)


def _opened(session: s.Session, event: s.ChatOpened) -> _Step:
    if session.live is not None:
        return session, (s.Tell("a reply is being written; Esc stops it", "warning"),)
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
        figures=s.Figures(**known),
    ), ()


def _started(session: s.Session, event: s.ChatStarted) -> _Step:
    if session.live is not None:
        return session, (s.Tell("a reply is being written; Esc stops it", "warning"),)
    fresh = replace(
        session, chat=event.chat, messages=(), siblings={}, figures=s.Figures()
    )
    return replace(fresh, is_kept=False, is_temporary=event.is_temporary), ()


def _changed(session: s.Session, event: s.ChatChanged) -> _Step:
    model = event.values.get("model", session.model)
    chat = replace(session.chat, **event.values)
    effects = (s.ChangeChat(chat.id, event.values),) if session.is_kept else ()
    return replace(session, chat=chat, model=model), effects


def _saving_failed(session: s.Session, event: s.SavingFailed) -> _Step:
    if session.is_temporary:
        return session, (s.Tell(event.error, "error"),)
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
    told = s.Tell(f"{event.error} This chat goes on unsaved.", "error")
    return session, (s.KeepInMemory(session.chat, thread), told)


def _siblings(session: s.Session, event: s.SiblingsRead) -> _Step:
    return (
        replace(session, siblings=event.siblings)
        if event.chat_id == session.chat.id
        else session
    ), ()


def _link(session: s.Session, event: s.LinkChanged) -> _Step:
    return replace(session, link=event.link, link_text=event.text), ()


def _models(session: s.Session, event: s.ModelsListed) -> _Step:
    ids = [one.id for one in event.models]
    model = session.model
    if model not in ids:
        model = (
            session.chat.model
            if session.chat.model in ids
            else next((one.id for one in event.models if one.served), model)
        )
    return replace(session, models=event.models, model=model), ()


def _engine(session: s.Session, event: s.EngineSeen) -> _Step:
    live = session.live
    if live is not None and live.first_at is None:
        mine = [
            one for one in event.view.requests if one.state in ("prefill", "waiting")
        ]
        best = max(mine, key=lambda one: one.computed_tokens, default=None)
        if best is not None and best.prompt_tokens:
            live = replace(live, progress=(best.computed_tokens, best.prompt_tokens))
    return replace(session, engine=event.view, live=live), ()


_STEPS: dict[type, Callable[[s.Session, Any], _Step]] = {
    s.Submitted: _submitted,
    s.Regenerated: _regenerated,
    s.Edited: _edited,
    s.Delta: _delta,
    s.UsageTold: _usage,
    s.Finished: _finished,
    s.Failed: _failed,
    s.Stopped: _stopped,
    s.Ticked: _ticked,
    s.ChatOpened: _opened,
    s.ChatStarted: _started,
    s.ChatChanged: _changed,
    s.SavingFailed: _saving_failed,
    s.LinkChanged: _link,
    s.ModelsListed: _models,
    s.EngineSeen: _engine,
    s.SiblingsRead: _siblings,
}
