"""The chat's state machine: every event, from every state in which it can come, without an interface."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rvllm_local.history.types import Chat, Message, MessageState, ToolCall
from rvllm_local.tui import state as s
from rvllm_local.tui.reducer import payload, reduce


def ready(*texts: str, **values) -> s.Session:
    """A chat whose messages alternate, on a server that is there."""
    messages = tuple(
        Message(
            f"m{place}",
            "c",
            f"m{place - 1}" if place else None,
            ("user", "assistant")[place % 2],
            text,
            created=0,
        )
        for place, text in enumerate(texts)
    )
    state = s.Session(
        Chat("c", created=0, updated=0),
        messages,
        link=s.Link.READY,
        model="small",
        is_kept=bool(texts),
    )
    return replace(state, **values)


def play(session: s.Session, *events: s.Event) -> tuple[s.Session, list[s.Effect]]:
    done: list[s.Effect] = []
    for event in events:
        session, effects = reduce(session, event)
        done += effects
    return session, done


def names(effects) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def told(effects) -> str:
    return " ".join(effect.text for effect in effects if isinstance(effect, s.Tell))


SEND = s.Submitted("why?", "p", "r", 10.0)


def test_a_prompt_is_kept_before_the_reply_is_asked_for() -> None:
    session, effects = play(ready(), SEND)
    assert names(effects) == ["KeepChat", "KeepMessage", "Generate"]
    assert effects[0].chat.title == "why?"
    assert effects[2].messages == ({"role": "user", "content": "why?"},)
    assert (session.live.reply_id, session.messages[-1].id) == ("r", "p")


def test_the_next_prompt_follows_the_last_message() -> None:
    session, effects = play(ready("a", "b"), SEND)
    assert names(effects) == ["KeepMessage", "Generate"]
    assert session.messages[-1].parent_id == "m1"
    assert [turn["content"] for turn in effects[-1].messages] == ["a", "b", "why?"]


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_prompt_is_nothing(text: str) -> None:
    session = ready()
    assert reduce(session, s.Submitted(text, "p", "r", 0)) == (session, ())


@pytest.mark.parametrize("link", [s.Link.CONNECTING, s.Link.LOADING, s.Link.LOST])
def test_without_a_server_the_prompt_comes_back(link: s.Link) -> None:
    session, effects = play(ready(link=link, link_text="no server answers"), SEND)
    assert effects == [
        s.ReturnPrompt("why?"),
        s.Tell("not sent: no server answers", "warning"),
    ]
    assert session.live is None


def test_while_a_reply_comes_the_next_prompt_waits_in_the_composer() -> None:
    _, effects = play(ready(), SEND, s.Submitted("more", "p2", "r2", 11.0))
    assert effects[-2] == s.ReturnPrompt("more")
    assert "Esc stops it" in told(effects)


def test_the_system_prompt_and_parameters_go_along() -> None:
    chat = Chat("c", system="Be brief.", params={"temperature": 0.2})
    _, effects = play(ready(chat=chat), SEND)
    assert effects[-1].messages[0] == {"role": "system", "content": "Be brief."}
    assert effects[-1].params == {"temperature": 0.2}


def test_words_are_gathered_and_measured() -> None:
    deltas = [
        s.Delta("r", 10.5, "Be"),
        s.Delta("r", 11.0, "cau"),
        s.Delta("r", 11.5, "se"),
    ]
    session, effects = play(
        ready(), SEND, *deltas, s.UsageTold("r", 30, 5, 20), s.Finished("r", "stop", 12)
    )
    reply = session.messages[-1]
    assert (reply.text, reply.state, reply.parent_id, session.live) == (
        "Because",
        MessageState.DONE,
        "p",
        None,
    )
    assert session.figures == s.Figures(30, 20, 5, 4.0, 0.5)
    assert reply.figures["ttft"] == 0.5
    assert names(effects)[3:] == [
        "KeepMessage",
        "UpdateMessage",
        "UpdateMessage",
        "ReadSiblings",
    ]


def test_a_partial_reply_is_written_at_once_and_then_each_second() -> None:
    session, effects = play(
        ready(), SEND, *(s.Delta("r", 10 + step / 10, "x") for step in range(1, 35))
    )
    writes = [
        effect.message
        for effect in effects
        if isinstance(effect, s.KeepMessage | s.UpdateMessage)
    ][1:]
    assert [len(message.text) for message in writes] == [1, 11, 21, 31]
    assert {message.state for message in writes} == {MessageState.PARTIAL}
    _, effects = play(session, s.Ticked(13.5), s.Ticked(14.2), s.Ticked(16.0))
    assert [len(effect.message.text) for effect in effects] == [
        34
    ]  # nothing new, nothing to write


def test_reasoning_is_apart_and_timed() -> None:
    events = [
        s.Delta("r", 11, reasoning="hm"),
        s.Delta("r", 13, "So"),
        s.Delta("r", 14, "."),
        s.Finished("r", "stop", 14),
    ]
    session, _ = play(ready(), SEND, *events)
    reply = session.messages[-1]
    assert (reply.text, reply.reasoning, reply.figures["thought_s"]) == ("So.", "hm", 2)


def test_tool_calls_are_joined() -> None:
    calls = [
        (ToolCall("f", '{"a"', "1"),),
        (ToolCall("", ": 1}"),),
        (ToolCall("g", "{}", "2"),),
    ]
    session, _ = play(
        ready(),
        SEND,
        *(s.Delta("r", 11, tool_calls=call) for call in calls),
        s.Finished("r", "x", 12),
    )
    assert session.messages[-1].tool_calls == (
        ToolCall("f", '{"a": 1}', "1"),
        ToolCall("g", "{}", "2"),
    )


def test_stopping_keeps_what_came() -> None:
    session, effects = play(
        ready(), SEND, s.Delta("r", 11, "Bec"), s.Stopped(12), s.Delta("r", 12, "ause")
    )
    assert (session.messages[-1].text, session.messages[-1].state) == (
        "Bec",
        MessageState.STOPPED,
    )
    assert names(effects)[-3:] == ["Abort", "UpdateMessage", "ReadSiblings"]


def test_stopping_before_the_first_word_returns_the_prompt() -> None:
    session, effects = play(ready("a", "b"), SEND, s.Stopped(11))
    assert effects[2:] == [s.Abort("r"), s.DropMessage("p"), s.ReturnPrompt("why?")]
    assert [message.id for message in session.messages] == ["m0", "m1"]


def test_stopping_nothing_is_nothing() -> None:
    assert reduce(ready("a"), s.Stopped(1)) == (ready("a"), ())


def test_a_reply_that_breaks_off_keeps_what_came_and_says_why() -> None:
    session, effects = play(
        ready(), SEND, s.Delta("r", 11, "Bec"), s.Failed("r", "the server closed", 12)
    )
    reply = session.messages[-1]
    assert (reply.text, reply.state, reply.figures["error"]) == (
        "Bec",
        MessageState.FAILED,
        "the server closed",
    )
    assert effects[-1] == s.Tell("the server closed", "error")


def test_a_failure_before_the_first_word_keeps_the_prompt_to_try_again() -> None:
    session, _ = play(ready(), SEND, s.Failed("r", "no server answers", 12))
    assert [message.role for message in session.messages] == ["user", "assistant"]
    _, effects = play(session, s.Regenerated("r", "r2", 13))
    assert effects[-1].messages == ({"role": "user", "content": "why?"},)


def test_an_end_at_max_tokens_is_told() -> None:
    _, effects = play(
        ready(), SEND, s.Delta("r", 11, "x"), s.Finished("r", "length", 12)
    )
    assert "max_tokens" in told(effects)


@pytest.mark.parametrize(
    "event",
    [
        s.Delta("old", 1, "x"),
        s.Finished("old", "stop", 1),
        s.Failed("old", "e", 1),
        s.UsageTold("old", 1, 1, 1),
    ],
)
def test_what_belongs_to_another_reply_is_ignored(event: s.Event) -> None:
    session, _ = play(ready(), SEND)
    assert reduce(session, event) == (session, ())
    assert reduce(ready(), event) == (ready(), ())


@pytest.mark.parametrize("chosen", ["m2", "m3"])
def test_regenerating_answers_the_same_prompt_again(chosen: str) -> None:
    session, effects = play(ready("a", "b", "c", "d"), s.Regenerated(chosen, "r", 1))
    assert names(effects) == ["Generate"]
    assert [turn["content"] for turn in effects[0].messages] == ["a", "b", "c"]
    session, effects = play(session, s.Delta("r", 2, "e"), s.Finished("r", "stop", 3))
    assert session.messages[-1].parent_id == "m2"
    assert effects[-1] == s.ReadSiblings("c")


def test_a_regeneration_that_is_stopped_at_once_leaves_the_old_reply() -> None:
    session, effects = play(ready("a", "b"), s.Regenerated("m1", "r", 1), s.Stopped(2))
    assert [message.text for message in session.messages] == ["a", "b"]
    assert names(effects) == ["Generate", "Abort"]


def test_nothing_to_regenerate() -> None:
    assert "no prompt" in told(play(ready(), s.Regenerated("x", "r", 1))[1])


def test_editing_starts_a_branch_beside_the_prompt() -> None:
    session, effects = play(
        ready("a", "b", "c", "d"), s.Edited("m2", "c2", "p", "r", 1)
    )
    assert names(effects) == ["KeepMessage", "Generate"]
    assert session.messages[-1].parent_id == "m1"
    assert [turn["content"] for turn in effects[1].messages] == ["a", "b", "c2"]
    stopped, effects = play(session, s.Stopped(2))
    assert [message.text for message in stopped.messages] == ["a", "b", "c", "d"]
    assert s.ReturnPrompt("c2") in effects


@pytest.mark.parametrize("chosen", ["m1", "nothing"])
def test_only_prompts_are_edited(chosen: str) -> None:
    _, effects = play(ready("a", "b"), s.Edited(chosen, "x", "p", "r", 1))
    assert effects[0] == s.ReturnPrompt("x")


def test_opening_a_chat_brings_its_figures_and_model() -> None:
    reply = Message(
        "m1",
        "d",
        "m0",
        "assistant",
        "b",
        figures={"prompt_tokens": 7, "ttft": 0.5, "error": "x"},
    )
    models = (s.ModelInfo("small"), s.ModelInfo("large"))
    event = s.ChatOpened(Chat("d", model="large"), (reply,), {"m1": (1, 2)}, False)
    session, effects = play(ready("a", models=models), event)
    assert (session.chat.id, session.model, session.figures) == (
        "d",
        "large",
        s.Figures(7, ttft=0.5),
    )
    assert effects == []


@pytest.mark.parametrize(
    "event", [s.ChatStarted(Chat("d"), True), s.ChatOpened(Chat("d"), (), {}, False)]
)
def test_a_chat_is_not_left_while_its_reply_comes(event: s.Event) -> None:
    before, _ = play(ready(), SEND)
    session, effects = play(before, event)
    assert session == before
    assert "Esc" in told(effects)


def test_a_new_chat_is_empty_and_kept_only_when_something_is_said() -> None:
    session, effects = play(ready("a", "b"), s.ChatStarted(Chat("d"), True))
    assert (session.messages, session.is_kept, session.is_temporary, effects) == (
        (),
        False,
        True,
        [],
    )


def test_changes_to_a_chat() -> None:
    session, effects = play(ready("a"), s.ChatChanged({"title": "T", "model": "large"}))
    assert (session.chat.title, session.model) == ("T", "large")
    assert effects == [s.ChangeChat("c", {"title": "T", "model": "large"})]
    session, effects = play(ready(), s.ChatChanged({"system": "x"}))
    assert (session.chat.system, effects) == (
        "x",
        [],
    )  # nothing is written before the first prompt


def test_a_full_disk_moves_the_chat_to_memory() -> None:
    session, _ = play(ready(), SEND)
    session, effects = play(session, s.SavingFailed("not saved: disk full."))
    assert session.is_temporary
    assert names(effects) == ["KeepInMemory", "Tell"]
    assert [message.id for message in effects[0].messages] == ["p"]
    assert "goes on unsaved" in told(effects)
    assert names(play(session, s.SavingFailed("again"))[1]) == ["Tell"]


def test_a_full_disk_in_mid_reply_takes_the_words_along() -> None:
    session, _ = play(ready(), SEND, s.Delta("r", 11, "Bec"))
    _, effects = play(session, s.SavingFailed("not saved"))
    assert [message.text for message in effects[0].messages] == ["why?", "Bec"]


def test_the_servers_models_and_link() -> None:
    models = (s.ModelInfo("off", served=False), s.ModelInfo("on", 4096))
    session, _ = play(
        ready(model=""), s.ModelsListed(models), s.LinkChanged(s.Link.LOST, "gone")
    )
    assert (session.model, session.context_length, session.link, session.link_text) == (
        "on",
        4096,
        s.Link.LOST,
        "gone",
    )
    session, _ = play(replace(session, model="off"), s.ModelsListed(models))
    assert session.model == "off"


def test_prefill_shows_its_progress_until_the_first_word() -> None:
    view = s.EngineView(
        requests=(
            s.RunningRequest("1", "prefill", 4000, 1000, 0, 0),
            s.RunningRequest("2", "decode", 9, 9, 1, 0),
        )
    )
    session, _ = play(ready(), SEND, s.EngineSeen(view))
    assert session.live.progress == (1000, 4000)
    session, _ = play(session, s.Delta("r", 11, "x"), s.EngineSeen(view))
    assert session.live.progress is None


def test_siblings_are_told_for_their_own_chat_alone() -> None:
    assert play(ready("a"), s.SiblingsRead("c", {"m0": (0, 2)}))[0].siblings == {
        "m0": (0, 2)
    }
    assert play(ready("a"), s.SiblingsRead("d", {"m0": (0, 2)}))[0].siblings == {}


def test_the_payload_joins_neighbours_and_leaves_out_what_is_empty() -> None:
    roles = [("user", "a"), ("assistant", " "), ("user", "b"), ("assistant", "c")]
    messages = tuple(
        Message(str(place), "c", None, role, text)
        for place, (role, text) in enumerate(roles)
    )
    assert payload(Chat("c"), messages) == (
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    )


def test_every_event_has_a_step() -> None:
    from rvllm_local.tui.reducer import _STEPS

    assert set(_STEPS) == set(s.Event.__args__)
