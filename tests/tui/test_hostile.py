"""Hostile output in the app: what a terminal would obey never reaches it, and the app goes on."""

from __future__ import annotations

import pytest

from tests.tui.fake_endpoint import FakeEndpoint

HOSTILE = {
    "markup": "[/x] [bold]a[/] [@click=app.quit]press[/] $error [connection=x]",
    "escapes": "\x1b[2J\x1b]0;title\x07\x1bc\x1b[?1049l end",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07 end",
    "c1": "\x9b2J\x9d52;c;x\x9c end",
    "bidi": "\u202edrowssap\u202c \u2066x\u2069 end",
    "fence": "```python\nx = '''[/x]\n" + "y\n" * 30,
    "ticks": "`" * 500 + " end",
    "nested": "> " * 300 + "- " * 300 + "end",
    "brackets": "[" * 2000 + "](" * 2000,
    "table": "|a" * 300 + "|\n" + "|-" * 300 + "|\n" + "|b" * 300 + "|\n",
    "zalgo": "a" + "\u0301" * 5000 + " end",
    "surrogate": "\ud800 end",
    "nul": "\0\0\r\b\b end",
    "link": "[safe](file:///etc/passwd) ![x](http://evil.example/?q=1) <javascript:alert(1)>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_output_is_only_text(play, name: str) -> None:
    async def scenario(chat) -> None:
        await chat.type("hi")
        await chat.press("enter")
        await chat.until(
            lambda: chat.session.live and chat.session.live.text == HOSTILE[name]
        )
        assert_harmless(chat.screen())
        chat.fake.release.set()
        await chat.until(lambda: chat.session.live is None)
        assert chat.texts[-1] == HOSTILE[name]
        assert_harmless(chat.screen())
        assert_harmless(chat.app.export_screenshot(), allowed="\n\t")
        await chat.say("/rename " + HOSTILE[name][:200].replace("\n", " "))
        await chat.press("ctrl+s")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        assert_harmless(chat.screen())

    play(scenario, FakeEndpoint({"hi": [HOSTILE[name], "hold"]}))


def assert_harmless(shown: str, allowed: str = "\n") -> None:
    bad = {
        one
        for one in shown
        if (ord(one) < 32 or 0x7F <= ord(one) < 0xA0) and one not in allowed
    }
    assert not bad
    assert not set(shown) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


SPLIT = [
    "a\ud83d",
    "\ude00b\r",
    "\nc \x1b",
    "[2J\x1b]",
    "52;c;x",
    "\x07 \xc2",
    "\x9b end\ud83d",
]


def test_what_is_split_between_deltas_is_whole_or_harmless(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        assert chat.texts[-1].startswith("a😀b\r\nc ")
        await chat.until(lambda: "a😀b" in chat.screen() and "␍" not in chat.screen())
        assert_harmless(chat.screen())

    play(scenario, FakeEndpoint({"hi": SPLIT}))


def test_a_line_of_a_megabyte(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        assert len(chat.texts[-1]) == 1_000_000
        await chat.until(lambda: "more characters" in chat.screen())
        await chat.pilot.resize_terminal(60, 20)
        await chat.press("alt+up", "escape")
        await chat.say("still there?")
        assert chat.texts[-1] == "Hello there."

    play(scenario, FakeEndpoint({"hi": ["x" * 50_000] * 20}))


def test_hostile_names_and_errors(play) -> None:
    async def scenario(chat) -> None:
        assert_harmless(chat.screen())
        await chat.say("hi")
        await chat.until(lambda: "the server says" in chat.screen())
        assert_harmless(chat.screen())
        await chat.press("ctrl+l")
        await chat.until(lambda: len(chat.app.screen_stack) == 2)
        assert_harmless(chat.screen())
        await chat.press("escape", "ctrl+b")
        await chat.pilot.pause()
        assert_harmless(chat.screen())

    fake = FakeEndpoint({"hi": [{"error": {"message": "\x1b[2J[/x]\x9b"}}]})
    fake.models = [{"id": "\x1b]52;c;x\x07[/x]"}]
    fake.engine = {
        "block_map": "\x1bzf",
        "blocks": {"\x1b": 1},
        "requests": [{"state": "\x1b[2J"}],
        "stats": {"\x1b[/x]": "\x9b"},
    }
    play(scenario, fake)


def test_what_is_written_is_shown_as_it_is(play) -> None:
    async def scenario(chat) -> None:
        chat.app.composer.load_text("a\u202eb\u200bc [/x] \x9b")
        await chat.until(lambda: "a\ufffdb\ufffdc [/x] \ufffd" in chat.screen())
        assert chat.app.composer.text == "a\u202eb\u200bc [/x] \x9b"

    play(scenario)
