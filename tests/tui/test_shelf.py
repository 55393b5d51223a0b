"""What orders the chats and tells of them: pins, folders, the side, personas, titles."""

from __future__ import annotations

import subprocess
import sys

from rvllm_local.history.types import Chat
from rvllm_local.tui.announcer import Announcer
from rvllm_local.tui.first_start import (
    LEAST_BESIDE,
    BestModel,
    best_model,
    expected_speed,
)
from rvllm_local.tui.personas import chat_values, persona_name, preset_note
from rvllm_local.tui.settings import ChatSettings
from rvllm_local.tui.shelf import Shelf
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.widgets.welcome import welcome_content
from tests.tui.fake_endpoint import FakeEndpoint

CALM = {"temperature": 0.2, "system": "Be brief.", "model": "large"}


def test_pins_come_first_then_folders() -> None:
    shelf = Shelf()
    chats = [Chat(name, title=name) for name in "abcd"]
    shelf.move("b", "  Work  things ")
    assert shelf.toggle_pin("d")
    assert [chat.id for chat in shelf.ordered(chats)] == ["d", "b", "a", "c"]
    assert shelf.label(chats[1]) == "Work things / b"
    assert shelf.label(chats[3]) == "★ d"
    again = Shelf()
    again.load(shelf.values())
    assert again == shelf
    again.load({"pins": [1], "folders": {"a": 2}})
    again.load("nonsense")
    assert not again.toggle_pin("d") if "d" in again.pins else again.pins == []
    shelf.move("b", "")
    assert shelf.folders == {}


def test_a_chat_is_pinned_and_put_into_a_folder(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("about whales")
        await chat.say("/folder Sea")
        await chat.say("/pin")
        await chat.press("ctrl+n")
        await chat.say("about krill")
        await chat.press("ctrl+s")
        await chat.until(lambda: "★ Sea / about whales" in chat.screen())
        await chat.press("ctrl+t")
        await chat.until(lambda: "★" not in chat.screen())
        await chat.press("ctrl+o")
        await chat.until(lambda: len(chat.app.screen_stack) == 3)
        await chat.press("ctrl+u", *"Air", "enter")
        await chat.until(lambda: "Air / about whales" in chat.screen())
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        setting = chat.app.driver.history.setting
        await chat.until(lambda: setting("shelf")["pins"] == [])
        assert list(setting("shelf")["folders"].values()) == ["Air"]

    play(scenario, size=(100, 24))


def test_a_folder_is_asked_for(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("about whales")
        await chat.say("/folder")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        await chat.press(*"Sea", "enter")
        await chat.told("this chat is in Sea")

    play(scenario)


def test_wide_terminals_show_the_chats_at_the_side(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("about whales")
        await chat.press("ctrl+n")
        await chat.say("about krill")
        await chat.until(lambda: "▌ about krill" in chat.screen())
        await chat.until(lambda: "about whales" in chat.screen())
        await chat.pilot.click("#sidebar", offset=(4, 1))
        await chat.until(lambda: chat.texts[:1] == ["about whales"])
        await chat.say("/sidebar")
        await chat.until(lambda: "about krill" not in chat.screen())
        await chat.say("/sidebar")
        await chat.until(lambda: "about krill" in chat.screen())

    play(scenario, size=(170, 30))


def test_a_preset_brings_its_model_and_is_named_below(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("/preset calm")
        await chat.until(lambda: chat.session.model == "large")
        await chat.until(lambda: "large  calm" in chat.screen())
        await chat.say("hi")
        body = chat.fake.requests[-1]
        assert (body["model"], body["temperature"]) == ("large", 0.2)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}

    play(scenario, settings=ChatSettings(presets={"calm": CALM}))


def test_a_persona_is_the_preset_whose_values_the_chat_has() -> None:
    values = chat_values(CALM, Chat("a"))
    chat = Chat("a", system=values["system"], params=values["params"])
    assert values["params"] == {"temperature": 0.2}
    assert persona_name(chat, {"wild": {"temperature": 2.0}, "calm": CALM}) == "calm"
    assert persona_name(Chat("a"), {"calm": CALM}) == ""
    assert preset_note(CALM) == "large · temperature 0.2 · Be brief."


# The terminal's title and its notifications


def test_a_long_reply_is_announced_where_nobody_looks() -> None:
    expected = {
        "bell": "\x07",
        "osc9": "\x1b]9;Teas: the answer is there\x07",
        "osc777": "\x1b]777;notify;rvllm;Teas: the answer is there\x07",
    }
    for kind, sequence in expected.items():
        sent: list[str] = []
        announcer = Announcer(kind, sent.append)
        for reply_id, took, is_looked_at in (("a", 11, False), ("b", 9, False)):
            announcer.note_start(reply_id, 100.0)
            announcer.reply_ended(reply_id, 100.0 + took, "Teas", is_looked_at)
        announcer.note_start("c", 100.0)
        announcer.reply_ended("c", 200.0, "Teas", True)
        assert sent == [sequence]


def test_nothing_is_announced_unless_it_is_asked_for() -> None:
    sent: list[str] = []
    announcer = Announcer(None, sent.append)
    announcer.note_start("a", 0.0)
    announcer.reply_ended("a", 100.0, "Teas", False)
    assert sent == []


def test_the_title_names_the_chat_and_no_escape_gets_in() -> None:
    sent: list[str] = []
    announcer = Announcer("osc9", sent.append)
    announcer.set_title("a\x1b]0;b\x07", True)
    announcer.set_title("a\x1b]0;b\x07", True)
    announcer.restore_title()
    assert sent == ["\x1b[22;2t", "\x1b]2;✳ a␛]0;b␇\x07", "\x1b[23;2t"]


def test_the_app_tells_the_end_of_a_reply(play) -> None:
    sent: list[str] = []

    async def scenario(chat) -> None:
        chat.app.announcer.write = sent.append
        chat.app.announcer.kind = "osc9"
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: chat.session.live and chat.session.live.text)
        reply_id = chat.session.live.reply_id
        chat.app.announcer.note_start(reply_id, chat.app.driver.clock() - 60)
        chat.app.app_focus = False
        chat.fake.release.set()
        await chat.until(lambda: chat.session.live is None)
        await chat.until(lambda: "\x1b]9;hi: the answer is there\x07" in sent)
        assert any(text.startswith("\x1b]2;✳ hi") for text in sent)

    play(scenario, FakeEndpoint({"hi": ["x", "hold"]}))


# What came while one looked elsewhere


def test_new_lines_below_are_told(play) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(lambda: chat.app.transcript.max_scroll_y > 20)
        await chat.press("pageup", "pageup")
        chat.fake.release.set()
        await chat.until(lambda: "new lines below" in chat.screen())
        await chat.press("ctrl+end")
        await chat.until(lambda: "new lines below" not in chat.screen())

    play(scenario, FakeEndpoint({"hi": ["line\n\n" * 40, "hold", "more\n\n" * 20]}))


# The first start


def info(name: str, size: float, fits: bool = True) -> ModelInfo:
    needed = 3 * int(size) + LEAST_BESIDE  # more than one token reads
    return ModelInfo(
        name, size=int(size), fits=fits, needed=needed, read=int(size), license="MIT"
    )


def test_the_best_model_is_the_largest_that_fits_and_is_fast_enough() -> None:
    offers = [info("huge", 9e9), info("good", 2e9), info("small", 1e8)]
    best = best_model([*offers, info("vast", 4e9, fits=False)], 50_000_000, 20e9)
    assert best == BestModel(offers[1], 10.0)
    assert best_model(offers, 2_000_000_000, 20e9) is None
    assert expected_speed(ModelInfo("x"), 1e9) is None


def test_an_empty_screen_offers_it_and_f3_fetches_it(play) -> None:
    async def scenario(chat) -> None:
        switched: list[str] = []
        chat.app.switch_model = lambda info: switched.append(info.id)
        await chat.press("f3")
        await chat.told("no better model is known")
        chat.app.best = BestModel(info("qwen3-4b", 2.3e9), 9.2)
        chat.app.show_welcome()
        await chat.until(lambda: "qwen3-4b is the best that fits here" in chat.screen())
        await chat.until(lambda: "2.3 GB   about 9 tok/s here   MIT" in chat.screen())
        await chat.press("f3")
        await chat.say("/best")
        assert switched == ["qwen3-4b", "qwen3-4b"]
        shown = welcome_content(chat.session, chat.app.best, "fetching 38 %").plain
        assert "fetching 38 %" in shown and "Esc pauses" in shown

    play(scenario)


def test_the_first_frame_waits_for_no_engine() -> None:
    """Whatever the chat needs of models and memory is loaded when it is asked for."""
    program = (
        "import sys, rvllm_local.tui.app;"
        "print([name for name in ('mlx', 'numpy', 'pypdf') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
