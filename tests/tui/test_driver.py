"""The driver against a scripted server: what is shown is what is kept, whatever the server does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, Notify, ReturnPrompt
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.events import ConnectionChanged, ModelsListed, ReplyGrew
from rvllm_local.tui.state import ConnectionState, ModelInfo
from tests.tui.fake_endpoint import FakeEndpoint


class Listening(Driver):
    """A driver that remembers what it told, and can wait for a state."""

    def __init__(self, history: ChatHistory | None, url: str) -> None:
        self.told: list[Effect] = []
        self.changed = asyncio.Event()
        super().__init__(lambda *_: self.changed.set(), self.told.append)
        self.history, self.endpoint = history, ChatEndpoint(url)
        self.dispatch(ConnectionChanged(ConnectionState.READY))
        self.dispatch(ModelsListed((ModelInfo("small", 4096),)))
        self.start()

    async def until(self, condition) -> None:
        async with asyncio.timeout(60):
            while not condition(self.session):
                self.changed.clear()
                await self.changed.wait()
        await self.drain()

    async def say(self, text: str) -> None:
        self.submit(text)
        await self.until(lambda session: session.live is None)


def run(scenario, fake: FakeEndpoint, path: Path | None = None) -> None:
    async def main() -> None:
        driver = Listening(ChatHistory(path) if path else None, fake.url)
        try:
            await scenario(driver)
        finally:
            await driver.close()

    with fake:
        asyncio.run(main())


def texts(messages) -> list[str]:
    return [message.text for message in messages]


def test_a_conversation_is_kept_and_goes_on(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        await driver.say("hi")
        await driver.say("more")
        kept = driver.history.thread(driver.session.chat.id)
        assert (
            texts(kept)
            == texts(driver.session.messages)
            == ["hi", "Hello there.", "more", "Hello there."]
        )
        assert kept[1].figures["cached_tokens"] == 8
        assert [turn["content"] for turn in fake.requests[1]["messages"]] == [
            "hi",
            "Hello there.",
            "more",
        ]

    fake = FakeEndpoint()
    run(scenario, fake, tmp_path / "h.db")


def test_the_prompt_is_on_disk_before_the_server_hears_of_it(tmp_path: Path) -> None:
    seen = []

    class Looking(FakeEndpoint):
        def steps(self, body):
            other = ChatHistory(tmp_path / "h.db")
            seen.extend(texts(other.thread(other.chats()[0].id)))
            other.close()
            return super().steps(body)

    run(lambda driver: driver.say("hi"), Looking(), tmp_path / "h.db")
    assert seen == ["hi"]


def test_stopping_keeps_the_words_and_frees_the_server(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        driver.submit("hi")
        await driver.until(lambda session: session.live and session.live.text)
        driver.stop()
        await driver.drain()
        last = driver.history.thread(driver.session.chat.id)[-1]
        assert (last.text, last.state) == ("one", MessageState.STOPPED)
        assert await asyncio.to_thread(fake.disconnected.wait, 60)

    fake = FakeEndpoint({"hi": ["one", "hold", "two"]})
    run(scenario, fake, tmp_path / "h.db")


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_prompt_that_no_server_could_hear_waits_for_the_next(
    is_closed: bool, tmp_path: Path
) -> None:
    """The server is lost, and looked for, while the prompt is still being written."""

    async def scenario(driver: Listening) -> None:
        endpoint = driver.endpoint
        if is_closed:
            await endpoint.close()
        else:
            driver.endpoint = None
        driver.submit("hi")
        await driver.until(lambda session: session.queue)
        assert driver.session.connection is ConnectionState.LOST
        assert not driver.session.messages
        await endpoint.close()
        driver.endpoint = ChatEndpoint(fake.url)
        driver.dispatch(ConnectionChanged(ConnectionState.READY))
        await driver.until(lambda session: len(session.messages) == 2)
        assert texts(driver.session.messages) == ["hi", "Hello there."]

    fake = FakeEndpoint()
    run(scenario, fake, tmp_path / "h.db")


def test_stopping_before_the_first_word_leaves_no_trace(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        driver.submit("hi")
        assert await asyncio.to_thread(fake.holding.wait, 60)
        driver.stop()
        await driver.drain()
        assert driver.history.all_messages(driver.session.chat.id) == []
        assert ReturnPrompt("hi") in driver.told

    fake = FakeEndpoint({"hi": ["hold"]})
    run(scenario, fake, tmp_path / "h.db")


def test_a_server_that_dies_in_mid_reply(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        await driver.say("hi")
        last = driver.history.thread(driver.session.chat.id)[-1]
        assert (last.text, last.state) == ("one", MessageState.FAILED)
        assert "closed the connection" in last.figures["error"]
        fake.script = {}
        driver.regenerate(last.id)
        await driver.until(lambda session: session.live is None)
        assert texts(driver.session.messages) == ["hi", "Hello there."]
        assert driver.session.siblings[driver.session.messages[-1].id] == (1, 2)

    fake = FakeEndpoint({"hi": ["one", "cut"]})
    run(scenario, fake, tmp_path / "h.db")


def test_edit_switch_branch_and_delete(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        await driver.say("hi")
        driver.edit(driver.session.messages[0].id, "ho")
        await driver.until(lambda session: session.live is None)
        assert texts(driver.session.messages) == ["ho", "Hello there."]
        await driver.switch_sibling(driver.session.messages[0].id, 1)
        assert texts(driver.session.messages) == ["hi", "Hello there."]
        first = driver.session.chat.id
        await driver.branch(driver.session.messages[0].id)
        assert (driver.session.chat.id != first, texts(driver.session.messages)) == (
            True,
            ["hi"],
        )
        await driver.open_chat(first)
        await driver.delete_message(driver.session.messages[1].id)
        assert texts(driver.session.messages) == ["hi"]
        await driver.delete_chat(first)
        assert driver.session.messages == ()
        with pytest.raises(HistoryError, match="no longer"):
            await driver.open_chat(first)

    run(scenario, FakeEndpoint(), tmp_path / "h.db")


def test_a_temporary_chat_is_never_written(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        driver.new_chat(is_temporary=True)
        await driver.say("secret")
        driver.regenerate(driver.session.messages[-1].id)
        await driver.until(lambda session: session.live is None)
        await driver.switch_sibling(driver.session.messages[-1].id, -1)
        assert driver.history.chats() == []
        assert b"secret" not in b"".join(
            path.read_bytes() for path in tmp_path.iterdir()
        )

    run(scenario, FakeEndpoint(), tmp_path / "h.db")


def test_a_full_disk_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        await driver.say("hi")
        pages = driver.history._db.execute("PRAGMA page_count").fetchone()[0]
        driver.history._db.execute(f"PRAGMA max_page_count = {pages}")
        await driver.say("x" * 100_000)
        await driver.say("still there?")
        assert driver.session.is_temporary
        assert (
            len(driver.session.messages)
            == len(driver.memory.thread(driver.session.chat.id))
            == 6
        )
        assert (
            sum(
                "goes on unsaved" in effect.text
                for effect in driver.told
                if isinstance(effect, Notify)
            )
            == 1
        )

    run(scenario, FakeEndpoint(), tmp_path / "h.db")


def test_without_a_history_chats_are_temporary() -> None:
    async def scenario(driver: Listening) -> None:
        driver.new_chat()
        await driver.say("hi")
        assert driver.session.is_temporary

    run(scenario, FakeEndpoint())


def test_many_parts_are_joined_but_all_are_counted(tmp_path: Path) -> None:
    async def scenario(driver: Listening) -> None:
        events = []
        driver._on_change = lambda session, event: (
            events.append(event),
            driver.changed.set(),
        )
        await driver.say("hi")
        assert driver.session.messages[-1].text == "x" * 2000
        deltas = [event for event in events if isinstance(event, ReplyGrew)]
        assert sum(event.num_chunks for event in deltas) == 2000
        assert len(deltas) < 200

    run(scenario, FakeEndpoint({"hi": ["x"] * 2000}), tmp_path / "h.db")
