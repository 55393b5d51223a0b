"""Several chats at once: each keeps its live reply, whatever chat is shown."""

from __future__ import annotations

import asyncio

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState
from rvllm_local.tui.screens.chats import ChatsScreen
from rvllm_local.tui.screens.compare import CompareScreen
from tests.tui.fake_endpoint import ENGINE, FakeEndpoint

SCRIPT = {"one": ["First ", "hold", "and last."], "two": ["Second."]}


async def begin(chat, text: str, words: str) -> None:
    await chat.type(text)
    await chat.press("enter")
    await chat.until(lambda: chat.session.live and words in chat.session.live.text)


def test_a_reply_goes_on_while_another_chat_is_used(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.press("ctrl+n")
        await chat.until(lambda: not chat.texts)
        await chat.until(lambda: "● 1 other writing" in chat.screen())
        await chat.say("two")
        assert chat.texts == ["two", "Second."]
        chat.fake.release.set()
        await chat.until(lambda: "✓ 1 new" in chat.screen())
        await chat.press("ctrl+s")
        await chat.until(lambda: isinstance(chat.app.screen, ChatsScreen))
        await chat.until(lambda: "✓ new" in chat.screen())
        await chat.press(*"one", "enter")
        await chat.until(lambda: chat.texts == ["one", "First and last."])
        await chat.until(lambda: "new" not in chat.screen())

    play(scenario, FakeEndpoint(SCRIPT))


def test_a_chat_that_writes_is_shown_so_and_comes_back_live(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.press("ctrl+n")
        await chat.press("ctrl+s")
        await chat.until(lambda: "● writing" in chat.screen())
        await chat.press("enter")
        await chat.until(lambda: chat.session.live is not None)
        await chat.until(lambda: "First" in chat.screen())
        chat.fake.release.set()
        await chat.until(lambda: chat.session.live is None)
        assert chat.texts == ["one", "First and last."]

    play(scenario, FakeEndpoint(SCRIPT))


def test_a_prompt_that_waits_stays_with_its_chat(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.type("two")
        await chat.press("enter")
        await chat.until(lambda: chat.session.queue)
        first = chat.session.chat.id
        await chat.press("ctrl+n")
        await chat.until(lambda: not chat.session.queue)
        chat.fake.release.set()
        await chat.until(lambda: not chat.app.driver.sessions.aside)
        await chat.app.driver.open_chat(first)
        assert chat.texts == ["one", "First and last.", "two", "Second."]

    play(scenario, FakeEndpoint(SCRIPT))


def test_quitting_keeps_what_every_chat_has(play, tmp_path) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.press("ctrl+n")
        await chat.press("ctrl+q")
        await chat.until(lambda: not chat.app.is_running)

    play(scenario, FakeEndpoint(SCRIPT))
    history = ChatHistory(tmp_path / "history.db")
    (chat,) = history.chats()
    reply = history.thread(chat.id)[-1]
    assert (reply.text, reply.state) == ("First ", MessageState.STOPPED)
    history.close()


def test_a_failure_elsewhere_is_told_with_the_chats_title(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.press("ctrl+n")
        chat.fake.release.set()
        await chat.until(lambda: chat.app.driver.sessions.unseen)

    fake = FakeEndpoint({"one": ["First", "hold", {"error": {"message": "burnt"}}]})
    play(scenario, fake)


def test_deleting_a_chat_that_writes_stops_it(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.app.driver.delete_chat(chat.session.chat.id)
        assert not chat.app.driver.is_writing
        assert chat.texts == []
        await asyncio.to_thread(chat.fake.disconnected.wait, 60)
        await chat.say("two")
        assert chat.texts == ["two", "Second."]

    play(scenario, FakeEndpoint(SCRIPT))


# Two answers side by side


def test_two_models_answer_side_by_side(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("two")
        await chat.say("/compare large")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
        rival = chat.app.driver.sessions.rival
        await chat.until(lambda: chat.app.driver.sessions.rival.live is None)
        assert rival is not None
        await chat.until(lambda: chat.screen().count("Second.") == 2)
        await chat.until(
            lambda: "1  small" in chat.screen() and "2  large" in chat.screen()
        )
        assert [body["model"] for body in chat.fake.requests] == ["small", "large"]
        await chat.press("2")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.session.model == "large"
        await chat.until(lambda: "‹ 2/2 ›" in chat.screen())
        await chat.app.driver.drain()
        history = chat.app.driver.history
        head = history.chat(chat.session.chat.id).head_id
        assert head == chat.session.messages[-1].id

    play(scenario, FakeEndpoint(SCRIPT))


def test_the_first_answer_stays_unless_the_other_is_taken(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("two")
        mine = chat.session.messages[-1].id
        await chat.say("/compare large")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
        await chat.press("1")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.session.messages[-1].id == mine
        await chat.app.driver.drain()
        history = chat.app.driver.history
        assert history.chat(chat.session.chat.id).head_id == mine

    play(scenario, FakeEndpoint(SCRIPT))


def test_an_answer_that_is_still_written_can_be_taken(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        assert chat.app.driver.compare("large")
        await chat.until(
            lambda: chat.app.driver.sessions.rival.live.text.startswith("First")
        )
        chat.app.driver.take_rival()
        assert chat.session.live is not None
        assert chat.session.model == "large"
        chat.fake.release.set()
        await chat.until(lambda: chat.session.live is None)
        assert chat.texts == ["one", "First and last."]

    play(scenario, FakeEndpoint(SCRIPT))


def test_a_model_that_is_not_served_cannot_be_compared(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("two")
        await chat.say("/compare nobody")
        await chat.told("does not serve nobody")

    play(scenario, FakeEndpoint(SCRIPT))


# Going on


def test_a_stopped_reply_is_written_on(play) -> None:
    async def scenario(chat) -> None:
        await chat.until(lambda: chat.session.engine is not None)
        await begin(chat, "one", "First")
        await chat.press("escape")
        await chat.until(lambda: chat.session.live is None)
        chat.fake.script["First "] = ["and more."]
        await chat.say("/continue")
        assert chat.texts == ["one", "First and more."]
        body = chat.fake.requests[-1]
        assert body["continue_final_message"] is True
        assert body["messages"][-1] == {"role": "assistant", "content": "First "}
        await chat.app.driver.drain()
        history = chat.app.driver.history
        (kept,) = history.thread(chat.session.chat.id)[1:]
        assert (kept.text, kept.state) == ("First and more.", MessageState.DONE)

    play(scenario, FakeEndpoint(SCRIPT))


def test_another_server_is_asked_to_go_on(play) -> None:
    async def scenario(chat) -> None:
        await begin(chat, "one", "First")
        await chat.press("escape")
        await chat.until(lambda: chat.session.live is None)
        await chat.say("/continue")
        assert "continue_final_message" not in chat.fake.requests[-1]
        assert chat.fake.requests[-1]["messages"][-1]["role"] == "user"

    fake = FakeEndpoint(SCRIPT)
    fake.engine = {"status": "no engine"}
    assert ENGINE["block_map"]
    play(scenario, fake)
