"""The chat's state machine: every event, from every state in which it can come, without an interface."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall
from rvllm_local.tui.effects import (
    CancelReply,
    DeleteMessage,
    Effect,
    Notify,
    ReadSiblings,
    ReturnPrompt,
    SaveMessage,
    UpdateChat,
    UpdateMessage,
)
from rvllm_local.tui.events import (
    ChatChanged,
    ChatOpened,
    ChatStarted,
    ClockTicked,
    CompactionAsked,
    ConnectionChanged,
    EngineSeen,
    Event,
    ModelsListed,
    PromptEdited,
    PromptSubmitted,
    PromptUnqueued,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    ReplyRegenerated,
    ReplyStopped,
    SavingFailed,
    SiblingsRead,
    UsageReceived,
)
from rvllm_local.tui.payload import payload
from rvllm_local.tui.reducer import reduce
from rvllm_local.tui.reply import read_stats
from rvllm_local.tui.state import (
    ChatSession,
    ConnectionState,
    EngineView,
    ModelInfo,
    ReplyStats,
    RunningRequest,
)
from rvllm_local.tui.status import context_gauge


def ready(*texts: str, **values) -> ChatSession:
    """A chat whose messages alternate, on a server that is there."""
    messages = tuple(
        ChatMessage(
            f"m{place}",
            "c",
            f"m{place - 1}" if place else None,
            ("user", "assistant")[place % 2],
            text,
            created=0,
        )
        for place, text in enumerate(texts)
    )
    state = ChatSession(
        Chat("c", created=0, updated=0),
        messages,
        connection=ConnectionState.READY,
        model="small",
        is_kept=bool(texts),
    )
    return replace(state, **values)


def play(session: ChatSession, *events: Event) -> tuple[ChatSession, list[Effect]]:
    done: list[Effect] = []
    for event in events:
        session, effects = reduce(session, event)
        done += effects
    return session, done


def names(effects) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def told(effects) -> str:
    return " ".join(effect.text for effect in effects if isinstance(effect, Notify))


SEND = PromptSubmitted("why?", "p", "r", 10.0)


def test_a_prompt_is_kept_before_the_reply_is_asked_for() -> None:
    session, effects = play(ready(), SEND)
    assert names(effects) == ["SaveChat", "SaveMessage", "Generate"]
    assert effects[0].chat.title == "why?"
    assert effects[2].messages == ({"role": "user", "content": "why?"},)
    assert (session.live.reply_id, session.messages[-1].id) == ("r", "p")


def test_the_next_prompt_follows_the_last_message() -> None:
    session, effects = play(ready("a", "b"), SEND)
    assert names(effects) == ["SaveMessage", "Generate"]
    assert session.messages[-1].parent_id == "m1"
    assert [turn["content"] for turn in effects[-1].messages] == ["a", "b", "why?"]


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_prompt_is_nothing(text: str) -> None:
    session = ready()
    assert reduce(session, PromptSubmitted(text, "p", "r", 0)) == (session, ())


@pytest.mark.parametrize(
    "state", [ConnectionState.CONNECTING, ConnectionState.LOADING, ConnectionState.LOST]
)
def test_without_a_server_the_prompt_waits_for_it(state: ConnectionState) -> None:
    session, effects = play(ready(connection=state), SEND)
    assert (session.live, effects, len(session.queue)) == (None, [], 1)
    session, effects = play(session, ConnectionChanged(ConnectionState.READY, at=12.0))
    assert effects[-1].messages == ({"role": "user", "content": "why?"},)
    assert (session.queue, session.live.began) == ((), 12.0)


def test_while_a_reply_comes_the_next_prompt_waits_in_line() -> None:
    more = PromptSubmitted("more", "p2", "r2", 11.0)
    session, effects = play(ready(), SEND, more)
    assert names(effects) == ["SaveChat", "SaveMessage", "Generate"]
    assert [waiting.text for waiting in session.queue] == ["more"]
    words = ReplyGrew("r", 12, "because")
    session, effects = play(session, words, ReplyFinished("r", "stop", 13))
    assert session.live.prompt.text == "more"
    assert [turn["content"] for turn in effects[-1].messages] == [
        "why?",
        "because",
        "more",
    ]


def test_a_waiting_prompt_can_be_taken_back() -> None:
    more = PromptSubmitted("more", "p2", "r2", 11.0)
    session, effects = play(ready(), SEND, more, PromptUnqueued())
    assert (session.queue, effects[-1]) == ((), ReturnPrompt("more"))
    assert reduce(session, PromptUnqueued()) == (session, ())


def test_stopping_sends_nothing_that_waits() -> None:
    more = PromptSubmitted("more", "p2", "r2", 11.0)
    words = ReplyGrew("r", 12, "because")
    session, effects = play(ready(), SEND, more, words, ReplyStopped(13))
    assert (session.queue, session.live) == ((), None)
    assert effects[-1] == ReturnPrompt("more")


def test_a_lost_server_is_waited_for_with_the_prompt() -> None:
    failed = ReplyFailed("r", "no server answers", 12, is_server_gone=True)
    session, effects = play(ready("a", "b"), SEND, failed)
    assert session.connection is ConnectionState.LOST
    assert effects[-1] == DeleteMessage("p")
    assert len(session.messages) == 2
    session, effects = play(session, ConnectionChanged(ConnectionState.READY, at=20.0))
    assert effects[-1].messages[-1] == {"role": "user", "content": "why?"}


def test_a_summary_is_what_later_turns_go_on_from() -> None:
    session, effects = play(ready("a", "b"), CompactionAsked("p", "r", 10.0))
    request = effects[-1].messages
    assert [turn["content"] for turn in request][:2] == ["a", "b"]
    assert request[-1]["content"].startswith("Summarise")
    ended = ReplyFinished("r", "stop", 13)
    session, _ = play(session, ReplyGrew("r", 12, "they met"), ended)
    later = PromptSubmitted("and then?", "p2", "r2", 14)
    session, effects = play(session, later)
    assert [turn["content"] for turn in effects[-1].messages][1:] == [
        "they met",
        "and then?",
    ]
    assert [message.text for message in session.messages][:2] == ["a", "b"]


def test_after_a_summary_the_context_is_as_good_as_empty() -> None:
    models = (ModelInfo("small", 2000),)
    asked = CompactionAsked("p", "r", 10.0)
    full = ready("a", "b", models=models, stats=ReplyStats(prompt_tokens=1900))
    grew = ReplyGrew("r", 12, "they met")
    counted = UsageReceived("r", 1900, 100, 0)
    done, _ = play(full, asked, grew, counted, ReplyFinished("r", "stop", 13))
    assert context_gauge(done) == ("ctx 150/2k", "")
    again, _ = play(ready(), ChatOpened(done.chat, done.messages, {}, False))
    assert again.stats == done.stats
    stopped, _ = play(full, asked, grew, counted, ReplyStopped(13))
    assert context_gauge(stopped) == ("ctx 2k/2k /compact", "$error")


def test_a_summary_asks_for_no_more_than_the_context_holds() -> None:
    long = "word " * 2000
    models = (ModelInfo("small", 2000),)
    session = ready(long, "first", "newer", "second", models=models, model="small")
    _, effects = play(session, CompactionAsked("p", "r", 10.0))
    texts = [turn["content"] for turn in effects[-1].messages]
    assert texts[:2] == ["newer", "second"]


def test_a_summary_is_not_cut_where_replies_are_to_be_short() -> None:
    asked = CompactionAsked("p", "r", 10.0)
    for given, sent in ((40, 500), (900, 900)):
        chat = Chat("c", params={"max_tokens": given})
        _, effects = play(ready("a", "b", chat=chat), asked)
        assert effects[-1].params == {"max_tokens": sent}


def test_a_summary_that_is_stopped_at_once_leaves_no_trace() -> None:
    asked = CompactionAsked("p", "r", 10.0)
    session, effects = play(ready("a", "b"), asked, ReplyStopped(11))
    assert len(session.messages) == 2
    assert names(effects)[-2:] == ["CancelReply", "DeleteMessage"]
    _, effects = play(ready(), asked)
    assert "nothing to summarise" in told(effects)


def test_the_system_prompt_and_parameters_go_along() -> None:
    chat = Chat("c", system="Be brief.", params={"temperature": 0.2})
    _, effects = play(ready(chat=chat), SEND)
    assert effects[-1].messages[0] == {"role": "system", "content": "Be brief."}
    assert effects[-1].params == {"temperature": 0.2}


def test_words_are_gathered_and_measured() -> None:
    deltas = [
        ReplyGrew("r", 10.5, "Be"),
        ReplyGrew("r", 11.0, "cau"),
        ReplyGrew("r", 11.5, "se"),
    ]
    session, effects = play(
        ready(),
        SEND,
        *deltas,
        UsageReceived("r", 30, 5, 20),
        ReplyFinished("r", "stop", 12),
    )
    reply = session.messages[-1]
    assert (reply.text, reply.state, reply.parent_id, session.live) == (
        "Because",
        MessageState.DONE,
        "p",
        None,
    )
    assert session.stats == ReplyStats(30, 20, 5, 4.0, 0.5)
    assert reply.figures["ttft"] == 0.5
    assert names(effects)[3:] == [
        "SaveMessage",
        "UpdateMessage",
        "UpdateMessage",
        "ReadSiblings",
    ]


def test_accepted_drafts_are_kept_with_the_reply() -> None:
    session, _ = play(
        ready(),
        SEND,
        ReplyGrew("r", 10.5, "So"),
        UsageReceived("r", 30, 40, 20, 31, 9),
        ReplyFinished("r", "stop", 12),
    )
    reply = session.messages[-1]
    assert (reply.figures["accepted_drafts"], session.stats.drafts) == (
        31,
        "drafts 31/40",
    )
    assert read_stats(reply.figures) == session.stats
    assert ReplyStats().drafts == ""


def test_the_speed_is_by_the_servers_clock_where_it_tells() -> None:
    grown = [ReplyGrew("r", at, "word") for at in (10.5, 11.0, 11.5)]
    own, _ = play(ready(), SEND, *grown, UsageReceived("r", 30, 5, 20))
    assert own.stats.tokens_per_second == 4.0
    counts = UsageReceived("r", 30, 5, 20, speed=61.5)
    told, _ = play(ready(), SEND, *grown, counts, ReplyFinished("r", "stop", 12))
    assert told.stats.tokens_per_second == 61.5
    assert told.messages[-1].figures["tokens_per_second"] == 61.5


@pytest.mark.parametrize("value", ["\x1b[2J", True, -1, 1e300, float("nan"), None, [1]])
def test_figures_that_are_none_are_left_out(value: object) -> None:
    figures = {"output_tokens": value, "ttft": value, "tokens_per_second": 2.5}
    assert read_stats(figures) == ReplyStats(tokens_per_second=2.5)


def test_a_partial_reply_is_written_at_once_and_then_each_second() -> None:
    session, effects = play(
        ready(), SEND, *(ReplyGrew("r", 10 + step / 10, "x") for step in range(1, 35))
    )
    writes = [
        effect.message
        for effect in effects
        if isinstance(effect, SaveMessage | UpdateMessage)
    ][1:]
    assert [len(message.text) for message in writes] == [1, 11, 21, 31]
    assert {message.state for message in writes} == {MessageState.PARTIAL}
    _, effects = play(session, ClockTicked(13.5), ClockTicked(14.2), ClockTicked(16.0))
    assert [len(effect.message.text) for effect in effects] == [
        34
    ]  # nothing new, nothing to write


def test_reasoning_is_apart_and_timed() -> None:
    events = [
        ReplyGrew("r", 11, reasoning="hm"),
        ReplyGrew("r", 13, "So"),
        ReplyGrew("r", 14, "."),
        ReplyFinished("r", "stop", 14),
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
        *(ReplyGrew("r", 11, tool_calls=call) for call in calls),
        ReplyFinished("r", "x", 12),
    )
    assert session.messages[-1].tool_calls == (
        ToolCall("f", '{"a": 1}', "1"),
        ToolCall("g", "{}", "2"),
    )


def test_stopping_keeps_what_came() -> None:
    session, effects = play(
        ready(),
        SEND,
        ReplyGrew("r", 11, "Bec"),
        ReplyStopped(12),
        ReplyGrew("r", 12, "ause"),
    )
    assert (session.messages[-1].text, session.messages[-1].state) == (
        "Bec",
        MessageState.STOPPED,
    )
    assert names(effects)[-3:] == ["CancelReply", "UpdateMessage", "ReadSiblings"]


def test_stopping_before_the_first_word_returns_the_prompt() -> None:
    session, effects = play(ready("a", "b"), SEND, ReplyStopped(11))
    assert effects[2:] == [CancelReply("r"), DeleteMessage("p"), ReturnPrompt("why?")]
    assert [message.id for message in session.messages] == ["m0", "m1"]


def test_stopping_nothing_is_nothing() -> None:
    assert reduce(ready("a"), ReplyStopped(1)) == (ready("a"), ())


def test_a_reply_that_breaks_off_keeps_what_came_and_says_why() -> None:
    session, effects = play(
        ready(),
        SEND,
        ReplyGrew("r", 11, "Bec"),
        ReplyFailed("r", "the server closed", 12),
    )
    reply = session.messages[-1]
    assert (reply.text, reply.state, reply.figures["error"]) == (
        "Bec",
        MessageState.FAILED,
        "the server closed",
    )
    assert "Notify" not in names(effects)  # it stands below the reply


def test_a_failure_before_the_first_word_keeps_the_prompt_to_try_again() -> None:
    session, _ = play(ready(), SEND, ReplyFailed("r", "no server answers", 12))
    assert [message.role for message in session.messages] == ["user", "assistant"]
    _, effects = play(session, ReplyRegenerated("r", "r2", 13))
    assert effects[-1].messages == ({"role": "user", "content": "why?"},)


def test_an_end_at_max_tokens_is_told() -> None:
    _, effects = play(
        ready(), SEND, ReplyGrew("r", 11, "x"), ReplyFinished("r", "length", 12)
    )
    assert "max_tokens" in told(effects)


@pytest.mark.parametrize(
    "event",
    [
        ReplyGrew("old", 1, "x"),
        ReplyFinished("old", "stop", 1),
        ReplyFailed("old", "e", 1),
        UsageReceived("old", 1, 1, 1),
    ],
)
def test_what_belongs_to_another_reply_is_ignored(event: Event) -> None:
    session, _ = play(ready(), SEND)
    assert reduce(session, event) == (session, ())
    assert reduce(ready(), event) == (ready(), ())


@pytest.mark.parametrize("chosen", ["m2", "m3"])
def test_regenerating_answers_the_same_prompt_again(chosen: str) -> None:
    session, effects = play(ready("a", "b", "c", "d"), ReplyRegenerated(chosen, "r", 1))
    assert names(effects) == ["Generate"]
    assert [turn["content"] for turn in effects[0].messages] == ["a", "b", "c"]
    session, effects = play(
        session, ReplyGrew("r", 2, "e"), ReplyFinished("r", "stop", 3)
    )
    assert session.messages[-1].parent_id == "m2"
    assert effects[-1] == ReadSiblings("c")


def test_a_regeneration_that_is_stopped_at_once_leaves_the_old_reply() -> None:
    session, effects = play(
        ready("a", "b"), ReplyRegenerated("m1", "r", 1), ReplyStopped(2)
    )
    assert [message.text for message in session.messages] == ["a", "b"]
    assert names(effects) == ["Generate", "CancelReply"]


def test_nothing_to_regenerate() -> None:
    assert "no prompt" in told(play(ready(), ReplyRegenerated("x", "r", 1))[1])


def test_editing_starts_a_branch_beside_the_prompt() -> None:
    session, effects = play(
        ready("a", "b", "c", "d"), PromptEdited("m2", "c2", "p", "r", 1)
    )
    assert names(effects) == ["SaveMessage", "Generate"]
    assert session.messages[-1].parent_id == "m1"
    assert [turn["content"] for turn in effects[1].messages] == ["a", "b", "c2"]
    stopped, effects = play(session, ReplyStopped(2))
    assert [message.text for message in stopped.messages] == ["a", "b", "c", "d"]
    assert ReturnPrompt("c2") in effects


@pytest.mark.parametrize("chosen", ["m1", "nothing"])
def test_only_prompts_are_edited(chosen: str) -> None:
    _, effects = play(ready("a", "b"), PromptEdited(chosen, "x", "p", "r", 1))
    assert effects[0] == ReturnPrompt("x")


def test_opening_a_chat_brings_its_figures_and_model() -> None:
    reply = ChatMessage(
        "m1",
        "d",
        "m0",
        "assistant",
        "b",
        figures={"prompt_tokens": 7, "ttft": 0.5, "error": "x"},
    )
    models = (ModelInfo("small"), ModelInfo("large"))
    event = ChatOpened(Chat("d", model="large"), (reply,), {"m1": (1, 2)}, False)
    session, effects = play(ready("a", models=models), event)
    assert (session.chat.id, session.model, session.stats) == (
        "d",
        "large",
        ReplyStats(7, ttft=0.5),
    )
    assert effects == []


@pytest.mark.parametrize(
    "event", [ChatStarted(Chat("d"), True), ChatOpened(Chat("d"), (), {}, False)]
)
def test_a_chat_is_not_left_while_its_reply_comes(event: Event) -> None:
    before, _ = play(ready(), SEND)
    session, effects = play(before, event)
    assert session == before
    assert "Esc" in told(effects)


def test_a_new_chat_is_empty_and_kept_only_when_something_is_said() -> None:
    session, effects = play(ready("a", "b"), ChatStarted(Chat("d"), True))
    assert (session.messages, session.is_kept, session.is_temporary, effects) == (
        (),
        False,
        True,
        [],
    )


def test_changes_to_a_chat() -> None:
    session, effects = play(ready("a"), ChatChanged({"title": "T", "model": "large"}))
    assert (session.chat.title, session.model) == ("T", "large")
    assert effects == [UpdateChat("c", {"title": "T", "model": "large"})]
    session, effects = play(ready(), ChatChanged({"system": "x"}))
    assert (session.chat.system, effects) == (
        "x",
        [],
    )  # nothing is written before the first prompt


def test_a_full_disk_moves_the_chat_to_memory() -> None:
    session, _ = play(ready(), SEND)
    session, effects = play(session, SavingFailed("not saved: disk full."))
    assert session.is_temporary
    assert names(effects) == ["MoveToMemory", "Notify"]
    assert [message.id for message in effects[0].messages] == ["p"]
    assert "goes on unsaved" in told(effects)
    assert names(play(session, SavingFailed("again"))[1]) == ["Notify"]


def test_a_full_disk_in_mid_reply_takes_the_words_along() -> None:
    session, _ = play(ready(), SEND, ReplyGrew("r", 11, "Bec"))
    _, effects = play(session, SavingFailed("not saved"))
    assert [message.text for message in effects[0].messages] == ["why?", "Bec"]


def test_the_servers_models_and_link() -> None:
    models = (ModelInfo("off", served=False), ModelInfo("on", 4096))
    session, _ = play(
        ready(model=""),
        ModelsListed(models),
        ConnectionChanged(ConnectionState.LOST, "gone"),
    )
    assert (
        session.model,
        session.context_length,
        session.connection,
        session.connection_text,
    ) == (
        "on",
        4096,
        ConnectionState.LOST,
        "gone",
    )
    session, _ = play(replace(session, model="off"), ModelsListed(models))
    assert session.model == "off"


def test_prefill_shows_its_progress_until_the_first_word() -> None:
    view = EngineView(
        requests=(
            RunningRequest("1", "prefill", 4000, 1000, 0, 0),
            RunningRequest("2", "decode", 9, 9, 1, 0),
        )
    )
    session, _ = play(ready(), SEND, EngineSeen(view))
    assert session.live.progress == (1000, 4000)
    session, _ = play(session, ReplyGrew("r", 11, "x"), EngineSeen(view))
    assert session.live.progress is None


def test_siblings_are_told_for_their_own_chat_alone() -> None:
    assert play(ready("a"), SiblingsRead("c", {"m0": (0, 2)}))[0].siblings == {
        "m0": (0, 2)
    }
    assert play(ready("a"), SiblingsRead("d", {"m0": (0, 2)}))[0].siblings == {}


def thread(*turns: tuple[str, str]) -> tuple[ChatMessage, ...]:
    messages = []
    for index, (role, text) in enumerate(turns):
        messages.append(ChatMessage(str(index), "c", None, role, text))
    return tuple(messages)


def test_a_failed_turn_is_never_sent_again() -> None:
    messages = thread(
        ("user", "far too long"), ("assistant", " "), ("user", "b"), ("assistant", "c")
    )
    assert payload(Chat("c"), messages) == (
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    assert payload(Chat("c"), messages[:1])[0]["content"] == "far too long"


def test_a_call_stands_for_its_reply() -> None:
    call = replace(thread(("assistant", ""))[0], tool_calls=(ToolCall("clock", "{}"),))
    messages = (*thread(("user", "what time?")), call, *thread(("user", "noon")))
    assert [turn["content"] for turn in payload(Chat("c"), messages)] == [
        "what time?",
        "[called clock({})]",
        "noon",
    ]


def test_every_event_has_a_step() -> None:
    from rvllm_local.tui.reducer import _STEPS

    assert set(_STEPS) == set(Event.__args__)
