"""Writing: what is offered, what is typed fast, and every command by its slash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual import events
from textual._xterm_parser import XTermParser

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.complete import completions
from rvllm_local.tui.screens.chats import ChatsScreen
from rvllm_local.tui.state import LiveReply
from rvllm_local.tui.terminal_keys import teach_keys
from rvllm_local.tui.widgets.live import LONGEST_REST_S, SHARE, FrameRate, live_foot
from tests.tui.fake_endpoint import FakeEndpoint


def test_keys_that_come_at_once_are_taken_in_order(play) -> None:
    async def scenario(chat) -> None:
        for character in "hi\nho\rnext":
            key = {"\n": "ctrl+j", "\r": "enter"}.get(character, character)
            chat.app.post_message(events.Key(key, character))
        await chat.until(lambda: chat.session.messages and chat.session.live is None)
        assert chat.texts[0] == "hi\nho"
        assert chat.app.composer.text == "next"

    play(scenario)


def test_letters_do_not_overtake_the_keys_before_them(play) -> None:
    def at_once(chat, *keys: str) -> None:
        for key in keys:
            character = key if len(key) == 1 else None
            chat.app.post_message(events.Key(key, character))

    async def scenario(chat) -> None:
        at_once(chat, *"teh", "backspace", "backspace", *"he", "home", *"a")
        await chat.until(lambda: chat.app.composer.text == "athe")
        chat.app.post_message(events.Key("ctrl+u", None))
        chat.app.post_message(events.Paste("pasted"))
        await chat.until(lambda: chat.app.composer.text == "pastedthe")
        chat.app.composer.take()
        await chat.press("slash", *"folder", "enter")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        at_once(chat, *"Wrk", "left", "left", "o", "enter")
        await chat.told("this chat is in Work")

    play(scenario)


def test_tab_completes_commands_and_files(
    play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my notes").mkdir()
    (tmp_path / "my notes" / "sea.md").write_text("salt")
    monkeypatch.chdir(tmp_path)

    async def scenario(chat) -> None:
        await chat.type("/reg")
        await chat.press("tab")
        await chat.until(lambda: chat.app.composer.text == "/regenerate ")
        chat.app.composer.load_text("")
        await chat.type("read @my")
        await chat.until(lambda: "@my notes/" in chat.screen())
        await chat.press("tab", "s", "tab")
        await chat.until(lambda: chat.app.composer.text == 'read @"my notes/sea.md" ')
        await chat.press("tab")
        await chat.until(lambda: not chat.app.composer.has_focus)

    play(scenario)


def test_what_is_offered(tmp_path: Path) -> None:
    for name in ("b.txt", "bad\x1b[2J.txt", "bidi\u202e.txt", ".hidden"):
        (tmp_path / name).write_text("x")
    assert [one.name for one in completions("see @b", tmp_path)] == [
        "@b.txt"
    ]  # what cannot be typed is not offered
    assert [one.text for one in completions("@.h", tmp_path)] == ["@.hidden "]
    assert [one.name for one in completions("/te", tmp_path)] == ["/temporary"]
    every = [one.text.strip() for one in completions("/", tmp_path)]
    assert every == [command.slash for command in COMMANDS if command.slash]
    assert [one.name for one in completions("/gen", tmp_path)] == ["/regenerate"]
    for typed in ("mail me@b", "@nowhere/x", "@b.txt ", "plain", "@\0"):
        assert completions(typed, tmp_path) == []


def test_another_answer_by_one_key(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("alt+r")
        await chat.until(
            lambda: len(chat.fake.requests) == 2 and chat.session.live is None
        )
        await chat.until(lambda: "‹ 2/2 ›" in chat.screen())

    play(scenario)


def test_commands_by_their_slash(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        first = chat.session.chat.id
        await chat.say("/regenerate")
        await chat.until(
            lambda: chat.session.siblings.get(chat.session.messages[-1].id) == (1, 2)
        )
        await chat.say("/previous")
        await chat.until(lambda: "‹ 1/2 ›" in chat.screen())
        await chat.say("/next")
        await chat.until(lambda: "‹ 2/2 ›" in chat.screen())
        await chat.say("/reasoning")
        await chat.until(lambda: "secret" in chat.screen())
        await chat.type("/edit")
        await chat.press("enter")
        await chat.until(lambda: chat.app.composer.text == "hi")
        await chat.press("escape")
        chat.app.composer.load_text("")
        await chat.say("/engine")
        await chat.until(lambda: "KV cache" in chat.screen())
        await chat.say("/engine")
        await chat.say("/branch")
        await chat.until(lambda: chat.session.chat.id != first)
        await chat.say("/new")
        await chat.until(lambda: chat.texts == [])
        await chat.say("/editor")
        await chat.told("ended with status 1")
        await chat.say("/chats hi")
        await chat.until(lambda: isinstance(chat.app.screen, ChatsScreen))
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        await chat.type("/quit")
        await chat.press("enter")
        await chat.until(lambda: not chat.app.is_running)

    from contextlib import nullcontext

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISUAL", "false")
        patch.setattr("rvllm_local.tui.app.ChatApp.suspend", lambda self: nullcontext())
        play(
            scenario,
            FakeEndpoint(default=[{"reasoning_content": "secret"}, "Hello"]),
            size=(100, 40),
        )


def test_a_reply_that_goes_silent_says_so() -> None:
    live = LiveReply(
        "r",
        ChatMessage("p", "c", None, "user", "hi"),
        True,
        (),
        0.0,
        first_at=1.0,
        last_at=2.0,
        text="x",
    )
    assert live_foot(live, 3.0).plain == ""
    assert "nothing has come for 8 s; Esc stops" in live_foot(live, 10.0).plain
    assert live_foot(replace(live, last_at=None), 60.0).plain == ""


def test_showing_takes_no_more_than_its_share() -> None:
    now, used = [0.0], [0.0]
    pace = FrameRate(lambda: now[0], lambda: used[0])
    pace.shown()
    used[0] = 0.012
    assert pace.rest() == pytest.approx(0.012 / SHARE)
    now[0] = 0.15
    assert pace.rest() == pytest.approx(0.012 / SHARE - 0.15)
    used[0] = 9.0
    assert pace.rest() == pytest.approx(LONGEST_REST_S - 0.15)
    now[0] = LONGEST_REST_S
    assert pace.rest() == 0.0


def test_a_new_chat_does_not_overtake_the_prompt_before_it(play) -> None:
    async def scenario(chat) -> None:
        chat.app.composer.insert("hi")
        chat.app.composer.action_composer_send()
        chat.app.action_chat_new()
        await chat.until(lambda: chat.app.driver.sessions.unseen)
        assert chat.fake.requests[0]["messages"][-1]["content"] == "hi"
        assert chat.session.messages == () and chat.app.composer.text == ""

    play(scenario)


def test_alt_enter_is_told_from_enter_as_terminals_send_it() -> None:
    teach_keys()
    teach_keys()
    assert keys_of("a\x1b\rb\r") == ["a", "alt+enter", "b", "enter"]


def keys_of(typed: str) -> list[str]:
    """The keys that Textual reads in what a terminal sends."""
    parser = XTermParser()
    return [event.key for event in parser.feed(typed)]
