"""The app as a person meets it: writing, streaming, stopping, and every key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.tui.commands import COMMANDS
from rvllm_local.tui.events import ConnectionChanged
from rvllm_local.tui.screens.chats import ChatsScreen
from rvllm_local.tui.screens.dialogs import Ask, Confirm, Pick
from rvllm_local.tui.screens.help import HelpScreen
from rvllm_local.tui.screens.models import ModelsScreen
from rvllm_local.tui.screens.parameters import ParametersScreen
from rvllm_local.tui.settings import PARAMETERS, ChatSettings
from rvllm_local.tui.state import ConnectionState
from tests.tui.fake_endpoint import FakeEndpoint


def dialog(chat, kind):
    return lambda: isinstance(chat.app.screen, kind)


def test_a_prompt_is_answered(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        assert chat.texts == ["hi", "Hello there."]
        await chat.until(lambda: "Hello there." in chat.screen())
        await chat.until(lambda: "small  ctx 14/32.8k  cached 8" in chat.screen())

    play(scenario)


def test_words_show_while_they_come_and_escape_keeps_them(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: "first words" in chat.screen())
        assert chat.session.live is not None
        await chat.press("escape")
        await chat.until(lambda: chat.session.live is None)
        assert chat.texts == ["hi", "The first words"]
        await chat.until(lambda: "■ stopped" in chat.screen())
        await chat.say("go on")
        assert chat.fake.requests[-1]["messages"][1]["content"] == "The first words"

    play(scenario, FakeEndpoint({"hi": ["The first words", "hold"]}))


def test_escape_before_the_first_word_returns_the_prompt(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(chat.fake.holding.is_set)
        await chat.until(lambda: "waiting for the first word" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: chat.app.composer.text == "hi")
        assert chat.texts == []

    play(scenario, FakeEndpoint({"hi": ["hold"]}))


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter"])
def test_a_new_line_is_not_sent(play, key: str) -> None:
    async def scenario(chat) -> None:
        await chat.press("a", key, "b")
        await chat.until(lambda: chat.app.composer.text == "a\nb")
        assert chat.texts == []

    play(scenario)


def test_a_second_prompt_waits_in_line(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: chat.session.live and chat.session.live.text)
        await chat.type("more")
        await chat.press("enter")
        await chat.until(lambda: "⏎ next: more" in chat.screen())
        await chat.press("up")
        await chat.until(lambda: chat.app.composer.text == "more")
        await chat.until(lambda: "next:" not in chat.screen())
        await chat.press("enter")
        chat.fake.release.set()
        await chat.until(lambda: len(chat.texts) == 4 and chat.session.live is None)
        assert chat.texts[2] == "more"

    play(scenario, FakeEndpoint({"hi": ["x", "hold"]}))


def test_up_recalls_the_last_prompt(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("up")
        await chat.until(lambda: chat.app.composer.text == "hi")
        await chat.press("up")
        await chat.until(lambda: chat.app.composer.text == "hi")

    play(scenario)


def test_ctrl_c_copies_then_stops_then_quits(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("copy me")
        chat.app.composer.select_all()
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.app.clipboard == "copy me")
        chat.app.composer.load_text("hi")
        await chat.press("enter")
        await chat.until(lambda: chat.session.live and chat.session.live.text)
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.session.live is None)
        await chat.press("ctrl+c")
        await chat.told("again to quit")
        assert chat.app.is_running
        await chat.press("ctrl+c")
        await chat.until(lambda: not chat.app.is_running)
        assert chat.app.return_value == 0

    play(scenario, FakeEndpoint({"hi": ["x", "hold"]}))


def test_ctrl_q_quits(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+q")
        await chat.until(lambda: not chat.app.is_running)

    play(scenario)


def test_walking_messages_and_what_their_keys_do(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("alt+up")
        await chat.until(lambda: chat.app.transcript.target.role == "assistant")
        await chat.press("c")
        await chat.until(lambda: chat.app.clipboard == "Look:\n\n```py\nx = 1\n```")
        await chat.press("C")
        await chat.until(lambda: chat.app.clipboard == "x = 1")
        await chat.press("r")
        await chat.until(
            lambda: chat.session.siblings.get(chat.session.messages[-1].id) == (1, 2)
        )
        await chat.press("alt+up", "left_square_bracket")
        await chat.until(
            lambda: chat.session.siblings[chat.session.messages[-1].id] == (0, 2)
        )
        await chat.until(lambda: "‹ 1/2 ›" in chat.screen())
        await chat.press("right_square_bracket")
        await chat.until(lambda: "‹ 2/2 ›" in chat.screen())
        await chat.press("alt+down")
        await chat.until(lambda: chat.app.composer.has_focus)

    play(scenario, FakeEndpoint({"hi": ["Look:\n\n```py\nx = 1\n```"]}))


def test_editing_makes_a_branch(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.app.composer.text == "hi")
        chat.app.composer.load_text("ho")
        await chat.press("enter")
        await chat.until(lambda: chat.texts[:1] == ["ho"] and chat.session.live is None)
        await chat.until(lambda: "‹ 2/2 ›" in chat.screen())

    play(scenario)


def test_branching_deleting_and_undoing(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.say("more")
        first = chat.session.chat.id
        await chat.press("alt+up", "alt+up", "alt+up", "b")
        await chat.until(lambda: chat.session.chat.id != first)
        assert chat.texts == ["hi", "Hello there."]
        await chat.press("alt+up", "delete")
        await chat.until(lambda: chat.texts == ["hi"])
        await chat.told("deleted 1 message")
        await chat.press("alt+up", "delete")
        await chat.until(lambda: chat.texts == [])
        await chat.press("alt+z")
        await chat.until(lambda: chat.texts == ["hi"])
        await chat.press("alt+z")
        await chat.until(lambda: chat.texts == ["hi", "Hello there."])
        await chat.say("/undo")
        await chat.told("no deletion to undo")

    play(scenario)


def test_what_is_typed_anywhere_goes_to_the_composer(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.pilot.click("#transcript", offset=(2, 20))
        chat.app.transcript.focus()
        await chat.press(*"today")
        await chat.until(lambda: chat.app.composer.text == "today")
        assert len(chat.app.screen_stack) == 1
        assert chat.texts == ["hi", "Hello there."]
        chat.app.composer.load_text("")
        chat.app.transcript.focus()
        await chat.press(*"regards")
        await chat.until(lambda: chat.app.composer.text == "regards")
        assert len(chat.fake.requests) == 1

    play(scenario)


def test_a_click_selects_a_message(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        view = chat.app.transcript._views[chat.session.messages[1].id]
        await chat.pilot.click(view)
        await chat.until(lambda: chat.app.transcript.selected == view.message.id)
        await chat.until(lambda: "c copy   r again" in chat.screen())
        await chat.press("c")
        await chat.until(lambda: chat.app.clipboard == "Hello there.")
        await chat.press("escape")
        await chat.until(lambda: chat.app.transcript.selected is None)
        await chat.until(lambda: "c copy" not in chat.screen())

    play(scenario)


def test_editing_is_seen_and_gives_the_draft_back(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.type("my draft")
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.app.composer.text == "hi")
        await chat.until(lambda: "Esc leaves it" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: chat.app.composer.text == "my draft")
        await chat.until(lambda: "Esc leaves it" not in chat.screen())
        await chat.press("alt+up", "alt+up", "e", "ctrl+n")
        await chat.until(lambda: chat.texts == [])
        assert (chat.app.composer.editing, chat.app.composer.text) == (None, "")

    play(scenario)


def test_each_chat_keeps_its_draft_over_a_quit(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.type("first draft")
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.app.composer.text == "")
        await chat.type("second draft")
        await chat.press("ctrl+s")
        await chat.until(dialog(chat, ChatsScreen))
        await chat.press("enter")
        await chat.until(lambda: chat.app.composer.text == "first draft")

    async def again(chat) -> None:
        await chat.until(lambda: chat.app.composer.text == "first draft")
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.app.composer.text == "second draft")

    play(scenario)
    play(again, resume="last")


def test_editing_never_doubles_an_attachment(play, tmp_path: Path) -> None:
    async def scenario(chat) -> None:
        await chat.say(f"Explain @{file}")
        await chat.press("alt+up", "alt+up", "e")
        await chat.until(lambda: chat.app.composer.text == f"Explain @{file}")
        await chat.press("enter")
        await chat.until(
            lambda: len(chat.fake.requests) == 2 and chat.session.live is None
        )
        content = chat.fake.requests[1]["messages"][-1]["content"]
        assert content.count("x = 1") == 1

    file = tmp_path / "small.py"
    file.write_text("x = 1\n")
    play(scenario)


def test_the_question_of_the_command_line_attaches_what_it_names(
    play, tmp_path: Path
) -> None:
    async def scenario(chat) -> None:
        await chat.until(lambda: chat.texts[1:] == ["Hello there."])
        assert "x = 1" in chat.fake.requests[0]["messages"][-1]["content"]
        await chat.until(lambda: f"Explain @{file}" in chat.screen().replace("\n", ""))

    file = tmp_path / "x.py"
    file.write_text("x = 1\n")
    play(scenario, prompt=f"Explain @{file}", size=(160, 24))


def test_a_file_of_the_command_line_that_is_missing_is_told(play) -> None:
    async def scenario(chat) -> None:
        await chat.told("there is no such file")
        await chat.until(lambda: chat.app.composer.text == "Explain @no/such.py")
        assert chat.fake.requests == []

    play(scenario, prompt="Explain @no/such.py")


def test_a_long_paste_is_a_token_until_it_is_sent(play) -> None:
    from textual import events

    async def scenario(chat) -> None:
        pasted = "\n".join(f"line {number}" for number in range(2000))
        chat.app.composer.post_message(events.Paste(pasted))
        await chat.until(lambda: chat.app.composer.text == "[pasted 2,000 lines #1]")
        await chat.press("enter", "enter")
        await chat.until(lambda: chat.session.messages and chat.session.live is None)
        assert chat.texts[0] == pasted
        await chat.until(lambda: "[pasted 2,000 lines #1]" in chat.screen())

    play(scenario)


def test_a_paste_that_comes_back_is_a_token_again(play) -> None:
    from textual import events

    async def scenario(chat) -> None:
        composer = chat.app.composer
        pasted = "\n".join(f"line {number}" for number in range(30))
        composer.post_message(events.Paste(pasted))
        await chat.until(lambda: composer.text == "[pasted 30 lines #1]")
        whole = composer.whole_text
        composer.take()
        composer.put(f"{whole} and more")
        assert composer.text == "[pasted 30 lines #1] and more"
        assert composer.whole_text == f"{pasted} and more"

    play(scenario)


def test_a_draft_of_a_megabyte_comes_back_whole_and_short(play) -> None:
    from textual import events

    async def scenario(chat) -> None:
        await chat.say("hi")
        chat_id = chat.session.chat.id
        pasted = "word " * 190_000
        chat.app.composer.post_message(events.Paste(pasted))
        await chat.until(lambda: chat.app.composer.text == token)
        await chat.until(lambda: "too long" in chat.screen())  # the gauge counts it
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.app.composer.text == "")
        await chat.app.driver.open_chat(chat_id)
        await chat.until(lambda: chat.app.composer.text == token)
        assert chat.app.composer.draft == pasted

    token = "[pasted 950,000 characters #1]"
    play(scenario)


def test_a_prompt_that_is_too_long_is_said_before_it_is_sent(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("word " * 100)
        await chat.until(lambda: "too long" in chat.screen())
        await chat.press("enter")
        await chat.told("shorten it, or press Enter again")
        assert not chat.fake.requests
        await chat.press("enter")
        await chat.until(lambda: chat.fake.requests)

    fake = FakeEndpoint()
    fake.models = [{"id": "small", "context_length": 100}]
    play(scenario, fake)


def test_a_summary_goes_on_without_what_it_sums_up(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.say("/compact")
        await chat.until(lambda: len(chat.texts) == 4)
        await chat.until(lambda: "goes on from this summary" in chat.screen())
        await chat.say("and now?")
        sent = [turn["content"] for turn in chat.fake.requests[-1]["messages"]]
        assert sent[0].startswith("Summarise") and sent[-1] == "and now?"
        assert "hi" not in sent
        assert chat.texts[:2] == ["hi", "Hello there."]

    play(scenario)


def test_a_reply_goes_on_when_asked(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("/continue")
        await chat.told("no reply to go on with")
        await chat.say("hi")
        await chat.say("/continue")
        await chat.until(lambda: len(chat.fake.requests) == 2)

    play(scenario)


def test_enter_after_a_backslash_begins_a_new_line(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("a", "backslash", "enter", "b")
        await chat.until(lambda: chat.app.composer.text == "a\nb")
        assert chat.texts == []

    play(scenario)


def test_arrows_choose_what_enter_completes(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("slash", "e")
        await chat.until(lambda: "▸ /export [path]" in chat.screen())
        await chat.press("down")
        await chat.until(lambda: "▸ /editor" in chat.screen())
        await chat.press("up", "enter")
        await chat.until(lambda: chat.app.composer.text == "/export ")
        await chat.press("escape")

    play(scenario)


def test_up_walks_the_prompts_of_all_chats(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("first")
        await chat.say("second")
        await chat.press("ctrl+n")
        for text in ("second", "first"):
            await chat.press("up")
            await chat.until(lambda text=text: chat.app.composer.text == text)
        await chat.press("down")
        await chat.until(lambda: chat.app.composer.text == "second")
        await chat.press("down")
        await chat.until(lambda: chat.app.composer.text == "")
        await chat.press("ctrl+r")
        await chat.until(dialog(chat, Pick))
        await chat.press(*"first", "enter")
        await chat.until(lambda: chat.app.composer.text == "first")

    play(scenario)


def test_an_editor_that_is_missing_leaves_the_app_alive(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    left = []

    @contextmanager
    def suspend(_app):
        yield  # like Textual's: an error here would leave the app suspended
        left.append(True)

    async def scenario(chat) -> None:
        monkeypatch.setattr(type(chat.app), "suspend", suspend)
        await chat.type("draft")
        await chat.press("ctrl+g")
        await chat.told("cannot be run")
        assert left and chat.app.composer.text == "draft"

    monkeypatch.setenv("VISUAL", "/no/such/editor")
    play(scenario)


def test_search_survives_a_damaged_database(play, tmp_path: Path) -> None:
    async def scenario(chat) -> None:
        def broken(_words: str, _limit: int = 50):
            raise HistoryError("the history cannot be read: disk image is malformed")

        chat.app.driver.history.search = broken
        await chat.press("ctrl+s")
        await chat.until(dialog(chat, ChatsScreen))
        await chat.press(*"zebra")
        await chat.told("cannot be read")
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)

    play(scenario)


def test_reasoning_is_folded_and_can_be_shown(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: "secret thoughts" in chat.screen())
        chat.fake.release.set()
        await chat.until(lambda: chat.session.live is None)
        await chat.until(lambda: "▸ thought for" in chat.screen())
        await chat.until(lambda: "secret thoughts" not in chat.screen())
        await chat.press("alt+up", "t")
        await chat.until(lambda: "secret thoughts" in chat.screen())

    play(
        scenario,
        FakeEndpoint(
            {"hi": [{"reasoning_content": "secret thoughts"}, "hold", "Answer"]}
        ),
    )


def test_tool_calls_are_shown(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.until(lambda: '⚙ clock({"zone": "[/x]"})' in chat.screen())

    call = {
        "tool_calls": [{"function": {"name": "clock", "arguments": '{"zone": "[/x]"}'}}]
    }
    play(scenario, FakeEndpoint({"hi": [call]}))


def test_prefill_shows_a_bar(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: "reading" in chat.screen())
        await chat.until(lambda: "25% of 8k tokens" in chat.screen())

    fake = FakeEndpoint({"hi": ["hold"]})
    fake.engine["requests"] = [
        {
            "request_id": "1",
            "state": "prefill",
            "prompt_tokens": 8000,
            "computed_tokens": 2000,
        }
    ]
    play(scenario, fake)


def test_chats_are_found_opened_renamed_and_deleted(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("about whales")
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.texts == [])
        await chat.say("about krill")
        await chat.press("ctrl+s")
        await chat.until(dialog(chat, ChatsScreen))
        await chat.press(*"whal", "enter")
        await chat.until(lambda: chat.texts[:1] == ["about whales"])
        await chat.press("ctrl+s")
        await chat.until(dialog(chat, ChatsScreen))
        await chat.press("down", "ctrl+r")
        await chat.until(dialog(chat, Ask))
        await chat.press("!", "enter")
        await chat.until(
            lambda: any("!" in one.title for one in chat.app.driver.history.chats())
        )
        await chat.press("delete")
        await chat.until(dialog(chat, Confirm))
        await chat.press("y")
        await chat.until(lambda: len(chat.app.driver.history.chats()) == 1)
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)

    play(scenario)


def test_choosing_a_model(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+l")
        await chat.until(dialog(chat, ModelsScreen))
        await chat.until(lambda: "ctx 131k" in chat.screen())
        await chat.press(*"large", "enter")
        await chat.until(lambda: chat.session.model == "large")
        await chat.say("/model small")
        await chat.until(lambda: chat.session.model == "small")
        await chat.say("/model none")
        await chat.told("no model none")

    play(scenario)


def test_parameters_and_presets(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+t")
        await chat.until(dialog(chat, ParametersScreen))
        await chat.press(*"Brief", "tab", *"x", "ctrl+s")
        await chat.until(lambda: "temperature must be a number" in chat.screen())
        await chat.press("backspace", *"0.2", "ctrl+o")
        await chat.until(dialog(chat, Ask))
        await chat.press(*"calm", "enter")
        await chat.until(lambda: chat.session.chat.params == {"temperature": 0.2})
        assert chat.session.chat.system == "Brief"
        await chat.until(lambda: chat.app.driver.history.setting("presets"))
        await chat.press("ctrl+n")
        await chat.say("/preset calm")
        await chat.until(lambda: chat.session.chat.system == "Brief")
        await chat.say("hi")
        assert chat.fake.requests[-1]["temperature"] == 0.2
        await chat.say("/set seed 7")
        await chat.say("/set temperature default")
        await chat.until(lambda: chat.session.chat.params == {"seed": 7})
        await chat.say("/set top_p 7")
        await chat.told("top_p must be in")

    play(scenario)


def test_a_preset_is_replaced_only_when_confirmed(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+t")
        await chat.until(dialog(chat, ParametersScreen))
        for key in ("n", "y"):
            await chat.press("ctrl+o")
            await chat.until(dialog(chat, Ask))
            await chat.press(*"few", "enter")
            await chat.until(dialog(chat, Confirm))
            assert chat.app.presets["few"] == {"top_k": 4}
            await chat.press(key)
        await chat.until(lambda: "top_k" not in chat.app.presets["few"])

    play(scenario, settings=ChatSettings(presets={"few": {"top_k": 4}}))


def test_a_system_prompt_that_was_typed_is_not_dropped_by_one_key(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+t")
        await chat.until(dialog(chat, ParametersScreen))
        await chat.press(*"Brief", "escape")
        await chat.until(lambda: "Esc again drops it" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.session.chat.system == ""
        await chat.press("ctrl+t")
        await chat.until(dialog(chat, ParametersScreen))
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)

    play(scenario)


def test_a_chat_that_was_not_saved_is_told_before_it_ends(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.app.driver.give_up_saving(chat.session.chat.id, "disk full.")
        await chat.press("ctrl+q")
        await chat.told("a chat that could not be saved would end with this")
        assert chat.app.is_running
        await chat.press("ctrl+q")
        await chat.until(lambda: not chat.app.is_running)

    play(scenario)


def test_a_preset_fills_the_fields(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+t")
        await chat.until(dialog(chat, ParametersScreen))
        await chat.press("ctrl+p")
        await chat.until(dialog(chat, Pick))
        await chat.press("enter")
        await chat.until(dialog(chat, ParametersScreen))
        await chat.press("ctrl+s")
        await chat.until(lambda: chat.session.chat.params == {"top_k": 4})

    play(scenario, settings=ChatSettings(presets={"few": {"top_k": 4}}))


def test_help_lists_every_key(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("f1")
        await chat.until(dialog(chat, HelpScreen))
        await chat.until(lambda: "Ctrl+N" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)

    play(scenario, size=(90, 50))


def test_the_palette_runs_a_command(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("ctrl+p")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        await chat.press(*"new chat")
        await chat.until(lambda: "New chat" in chat.screen())
        await chat.press("enter")
        await chat.until(lambda: chat.texts == [])

    play(scenario)


def test_find_goes_from_the_newest_back(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("whale one")
        await chat.say("whale two")
        await chat.press("ctrl+f", *"whale", "enter")
        await chat.until(lambda: chat.app.transcript.target.text == "whale two")
        await chat.press("enter")
        await chat.until(lambda: chat.app.transcript.target.text == "whale one")
        await chat.press("escape")
        await chat.until(lambda: chat.app.composer.has_focus)
        await chat.say("/find krill")
        await chat.told("not found")

    play(scenario)


def test_the_engine_panel(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("f2")
        await chat.until(lambda: "spilled 3" in chat.screen())
        for part in ("KV cache", "██", "0 running, 0 waiting", "kv arena"):
            assert part in chat.screen()
        await chat.until(lambda: "prefix hit tokens" not in chat.screen())
        await chat.say("/more")
        await chat.until(lambda: "prefix hit tokens" in chat.screen())
        await chat.say("/more")
        await chat.until(lambda: "prefix hit tokens" not in chat.screen())
        await chat.press("ctrl+b")
        await chat.until(lambda: "spilled 3" not in chat.screen())

    play(scenario, size=(110, 36))


def test_scrolling_stops_following_and_end_resumes(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        transcript = chat.app.transcript
        await chat.until(
            lambda: (
                transcript.max_scroll_y > 30
                and transcript.scroll_y == transcript.max_scroll_y
            )
        )
        await chat.press("pageup")
        await chat.until(lambda: transcript.scroll_y < transcript.max_scroll_y)
        await chat.press("pagedown")
        await chat.press("pageup", "ctrl+end")
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        await chat.press("alt+up", "pageup", "end")
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)

    play(scenario, FakeEndpoint({"hi": ["line\n\n" * 60]}))


def test_the_editor(play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    async def scenario(chat) -> None:
        monkeypatch.setattr(type(chat.app), "suspend", lambda self: nullcontext())
        await chat.type("draft")
        await chat.press("ctrl+g")
        await chat.until(lambda: chat.app.composer.text == "draft and more")
        monkeypatch.setenv("VISUAL", "false")
        await chat.press("ctrl+g")
        await chat.told("ended with status 1")
        assert chat.app.composer.text == "draft and more"

    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf " and more" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    play(scenario)


def test_attaching_files(play, tmp_path: Path) -> None:
    async def scenario(chat) -> None:
        await chat.type(f"/attach {file}")
        await chat.press("enter")
        await chat.until(lambda: chat.app.composer.text.startswith("@"))
        await chat.press("enter")
        await chat.until(lambda: chat.session.messages and chat.session.live is None)
        assert "a note.txt:\n```txt\nsecret = 1\n```" in chat.texts[0]
        big.write_bytes(b"x" * 300_000)
        await chat.type(f"@{big}")
        await chat.press("enter")
        await chat.told("at most 262,144")
        assert chat.app.composer.text == f"@{big}"

    file, big = tmp_path / "a note.txt", tmp_path / "big.txt"
    file.write_text("secret = 1\n")
    play(scenario)


def test_themes_are_remembered(play, tmp_path: Path) -> None:
    async def scenario(chat) -> None:
        for name in ("light", "high-contrast", "terminal", "terminal-light", "dark"):
            await chat.say(f"/theme {name}")
        await chat.until(lambda: chat.app.theme == "dark")
        await chat.say("/theme pink")
        await chat.told("no theme pink")
        await chat.say("/theme")
        await chat.until(dialog(chat, Pick))
        await chat.press(*"light", "enter")
        await chat.until(lambda: chat.app.driver.history.setting("theme") == "light")

    async def again(chat) -> None:
        await chat.until(lambda: chat.app.theme == "light")

    play(scenario)
    play(again)


def test_export_and_import(play, tmp_path: Path) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.say(f"/export {tmp_path}/out.json")
        await chat.told("exported")
        assert (
            json.loads((tmp_path / "out.json").read_text())["messages"][0]["content"]
            == "hi"
        )
        await chat.say(f"/export {tmp_path}/out.json")
        await chat.told("exists")
        await chat.say(f"/export {tmp_path}/out.pdf")
        await chat.told("must end in")
        await chat.say("/export")
        await chat.until(dialog(chat, Ask))
        await chat.press("escape")
        first = chat.session.chat.id
        await chat.say(f"/import {tmp_path}/out.json")
        await chat.until(lambda: chat.session.chat.id != first)
        assert chat.texts == ["hi", "Hello there."]
        await chat.say(f"/import {tmp_path}/none.json")
        await chat.told("No such file")

    play(scenario)


def test_rename_system_delete_and_temporary(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.say("/rename A talk")
        await chat.say("/system Be brief.")
        await chat.until(lambda: chat.session.chat.system == "Be brief.")
        assert chat.session.chat.title == "A talk"
        await chat.say("/rename")
        await chat.until(dialog(chat, Ask))
        await chat.press("escape")
        await chat.say("/delete")
        await chat.until(dialog(chat, Confirm))
        await chat.press("n")
        await chat.say("/delete")
        await chat.until(dialog(chat, Confirm))
        await chat.press("y")
        await chat.until(lambda: chat.texts == [])
        await chat.say("/temporary")
        await chat.until(lambda: "not kept" in chat.screen())
        await chat.say("secret")
        assert chat.app.driver.history.chats() == []

    play(scenario)


def test_slash_commands_are_hinted_and_unknown_ones_named(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("slash", "e", "x")
        await chat.until(lambda: "/export [path]" in chat.screen())
        await chat.say(
            ""
        ) if not chat.app.composer.text else chat.app.composer.load_text("")
        await chat.type("/exprt")
        await chat.press("enter")
        await chat.told("did you mean /export?")
        chat.app.composer.load_text("")
        await chat.say("//literally")
        assert chat.texts[0] == "/literally"
        await chat.say("/regenerate")
        await chat.until(
            lambda: len(chat.fake.requests) == 2 and chat.session.live is None
        )
        await chat.press("alt+r")
        await chat.until(
            lambda: len(chat.fake.requests) == 3 and chat.session.live is None
        )
        await chat.say("/prompts")
        await chat.until(dialog(chat, Pick))
        await chat.press("escape")
        for slash in ("/copy", "/copycode", "/stop", "/help"):
            await chat.say(slash)
        await chat.until(dialog(chat, HelpScreen))

    play(scenario)


def test_keys_can_be_remapped(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.texts)
        await chat.press("f9")
        await chat.until(lambda: chat.texts == [])

    play(scenario, settings=ChatSettings(keys={"chat.new": "f9"}))


def test_no_server(play) -> None:
    from rvllm_local.tui.launcher import ServerLauncher

    async def scenario(chat) -> None:
        await chat.until(lambda: "no server answers" in chat.screen())
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: "⏎ next: hi" in chat.screen())
        chat.app.server.url = chat.fake.url
        await chat.say("/retry")
        await chat.until(lambda: chat.texts == ["hi", "Hello there."])

    play(scenario, ready=False, server=ServerLauncher("http://127.0.0.1:9", None))


def test_a_server_that_dies_in_mid_reply(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        await chat.until(lambda: "✗ the server closed the connection" in chat.screen())
        assert chat.texts == ["hi", "half"]
        await chat.press("alt+up", "r")
        await chat.until(lambda: len(chat.fake.requests) == 2)

    play(scenario, FakeEndpoint({"hi": ["half", "cut"]}))


def test_a_newer_history_is_read_only(play, tmp_path: Path) -> None:
    import sqlite3

    ChatHistory(tmp_path / "history.db").close()
    db = sqlite3.connect(tmp_path / "history.db")
    db.execute("PRAGMA user_version = 99")
    db.close()

    async def scenario(chat) -> None:
        await chat.told("newer version")
        await chat.say("hi")
        assert chat.texts[-1] == "Hello there."
        await chat.until(lambda: "not kept" in chat.screen())

    play(scenario)


def test_a_history_that_is_none(play, tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("no database at all" * 100)

    async def scenario(chat) -> None:
        await chat.told("not kept this time")
        await chat.say("hi")
        assert chat.texts[-1] == "Hello there."
        await chat.press("ctrl+s")
        await chat.told("no history")

    play(scenario)


@pytest.mark.parametrize("size", [(40, 10), (20, 5), (200, 60)])
def test_any_size_of_terminal(play, size) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        for key in (
            "ctrl+b",
            "ctrl+b",
            "ctrl+s",
            "escape",
            "ctrl+l",
            "escape",
            "ctrl+t",
            "escape",
            "f1",
            "escape",
        ):
            await chat.press(key)
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.texts[-1] == "Hello there."
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: "Hello there." in chat.screen())

    play(scenario, size=size)


def test_a_long_paste_is_refused_and_controls_are_dropped(play) -> None:
    from textual import events

    async def scenario(chat) -> None:
        chat.app.composer.post_message(events.Paste("a\x1b[31m\r\nb"))
        await chat.until(lambda: chat.app.composer.text == "a[31m\nb")
        chat.app.composer.post_message(events.Paste("x" * 2_000_000))
        await chat.told("too many to paste")

    play(scenario)


def test_a_thousand_messages(play, tmp_path: Path) -> None:
    from rvllm_local.history.types import Chat, ChatMessage

    history = ChatHistory(tmp_path / "history.db")
    history.add_chat(Chat("c", "Long"))
    with history._write() as db:
        db.executemany(
            "INSERT INTO message VALUES (?,?,'c',?,?,?,'','[]','done','','{}',0)",
            [
                (
                    at + 1,
                    f"m{at}",
                    f"m{at - 1}" if at else None,
                    ("user", "assistant")[at % 2],
                    f"text {at}",
                )
                for at in range(1000)
            ],
        )
        db.execute("UPDATE chat SET head_id = 'm999'")
    assert isinstance(history.message("m0"), ChatMessage)
    history.close()

    async def scenario(chat) -> None:
        await chat.until(lambda: "text 999" in chat.screen())
        assert len(chat.app.transcript.children) < 150
        await chat.say("/find text 500")
        await chat.until(lambda: "text 500" in chat.screen())

    play(scenario, resume="last")


def test_every_command_has_an_action(play) -> None:
    from rvllm_local.tui.app import ChatApp
    from rvllm_local.tui.widgets.composer import Composer
    from rvllm_local.tui.widgets.transcript import Transcript

    homes = {"app": ChatApp, "composer": Composer, "transcript": Transcript}
    for command in COMMANDS:
        action = getattr(homes[command.home], f"action_{command.action}", None)
        assert callable(action), command.id


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (120, 40)])
def test_a_long_list_leaves_room_for_its_keys(play, size: tuple[int, int]) -> None:
    fake = FakeEndpoint()
    fake.models = [{"id": f"model-{number}"} for number in range(40)]

    async def scenario(chat) -> None:
        await chat.press("ctrl+l")
        await chat.until(lambda: "closes" in chat.screen())
        rows = [line for line in chat.screen().split("\n") if "model-" in line]
        assert rows

    play(scenario, fake, size=size)


def test_all_parameters_are_seen_at_once(play) -> None:
    async def scenario(chat) -> None:
        await chat.press("ctrl+t")
        await chat.until(lambda: "repetition_penalty" in chat.screen())
        assert chat.screen().count("default") == len(PARAMETERS)
        await chat.press("tab", "down", "down", "up", *"0.5", "enter")
        await chat.until(lambda: chat.session.chat.params == {"top_p": 0.5})

    play(scenario)


def test_why_there_is_no_server_is_told_where_the_line_is_too_short(play) -> None:
    reason = f"error: it could not be fetched: {'no, ' * 30}never"

    async def scenario(chat) -> None:
        await chat.say("hi")
        for _ in range(2):
            for state in (ConnectionState.LOADING, ConnectionState.LOST):
                chat.app.driver.dispatch(ConnectionChanged(state, reason))
        await chat.until(lambda: reason in chat.notices)
        short = "no server answers"
        chat.app.driver.dispatch(ConnectionChanged(ConnectionState.LOST, short))
        await chat.until(lambda: short in chat.screen())
        assert chat.notices == [reason]

    play(scenario)
