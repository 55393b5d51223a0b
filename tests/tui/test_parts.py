"""The parts without an interface: commands, keys, settings, attachments, rendering and the status line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from rvllm_local.errors import ConfigError, ParameterError
from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall
from rvllm_local.tui.attach import expand, mention
from rvllm_local.tui.commands import COMMANDS, as_prompt, complete_slash, parse_slash
from rvllm_local.tui.engine_text import PanelExtras, engine_lines, sparkline
from rvllm_local.tui.keymap import bindings, check_keymap, shown_keys
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.render import code_blocks, render_markdown, render_message
from rvllm_local.tui.settings import ChatSettings, load_settings, parse_parameter
from rvllm_local.tui.state import (
    ChatSession,
    ConnectionState,
    EngineView,
    LiveReply,
    ModelInfo,
    ReplyStats,
    RunningRequest,
)
from rvllm_local.tui.status import (
    bar,
    context_gauge,
    short_count,
    status_content,
    status_text,
)


def test_the_registry_is_sound() -> None:
    assert len({command.id for command in COMMANDS}) == len(COMMANDS)
    slashes = [command.slash for command in COMMANDS if command.slash]
    assert len(set(slashes)) == len(slashes)
    keys = [
        (command.scope, key)
        for command in COMMANDS
        for key in command.keys.split(",")
        if key
    ]
    assert len(set(keys)) == len(keys)
    assert not {key for _, key in keys} & {
        "ctrl+i",
        "ctrl+m",
        "ctrl+h",
        "ctrl+left_square_bracket",
    }
    for scope in ("app", "composer", "transcript"):
        assert all(binding.id for binding in bindings(scope))


@pytest.mark.parametrize(
    ("text", "id", "argument"),
    [
        ("/new", "chat.new", ""),
        ("  /model  large ", "model.pick", "large"),
        ("/system a\nb", "chat.system", "a\nb"),
    ],
)
def test_slash_commands(text: str, id: str, argument: str) -> None:
    command, found = parse_slash(text)
    assert (command.id, found) == (id, argument)


@pytest.mark.parametrize("text", ["hi", "//new", "/usr/bin/env", "/", "a /new", "/New"])
def test_what_is_a_prompt(text: str) -> None:
    assert parse_slash(text) is None


def test_the_nearest_command_is_named() -> None:
    with pytest.raises(ParameterError, match="did you mean /export"):
        parse_slash("/exporrt x")
    assert as_prompt("//new") == "/new"
    assert [one.slash for one in complete_slash("/te")] == ["/temporary"]
    assert complete_slash("te") == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"chat.neww": "f9"}, "did you mean chat.new"),
        ({"chat.new": "ctrl+i"}, "the same as tab"),
        ({"chat.new": "ctrl+s"}, "belongs to chat.list"),
        ({"message.copy": "ctrl+s"}, "belongs to chat.list"),
        ({"chat.new": ""}, "empty key"),
    ],
)
def test_a_remapping_that_cannot_work(keys: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_keymap(keys)


def test_remapped_keys_are_shown() -> None:
    keys = check_keymap({"chat.new": "ctrl+s", "chat.list": "f8, ctrl+y"})
    assert shown_keys("chat.list", keys) == "F8, Ctrl+Y"
    assert shown_keys("message.previous", {}) == "Alt+Up"


def test_settings_are_read(tmp_path: Path) -> None:
    environ = {"RVLLM_CONFIG": str(tmp_path / "config.toml")}
    assert load_settings(environ) == ChatSettings()
    text = 'theme = "light"\n[keys]\n"chat.new" = "f9"\n[presets.calm]\ntemperature = 0.2\nsystem = "Brief"\n'
    (tmp_path / "chat.toml").write_text(text)
    found = load_settings(environ)
    assert (found.theme, found.keys, found.presets) == (
        "light",
        {"chat.new": "f9"},
        {"calm": {"temperature": 0.2, "system": "Brief"}},
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("theme = 3", "theme = 3"),
        ("port = true", "port = True"),
        ("port = 70000", "port = 70000"),
        ("colour = 1", "colour"),
        ("x", "cannot be read"),
        ("[keys]\na = 1", r"\[keys\] a"),
        ("[presets]\na = 1", "preset 'a'"),
        ("[presets.a]\ntop_p = 3", "top_p must be in"),
        ("[presets.a]\nspeed = 3", "no parameter 'speed'"),
        ("[presets.a]\nsystem = 3", "system must be text"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "chat.toml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_settings({"RVLLM_CONFIG": str(tmp_path / "config.toml")})


def test_the_port_of_the_chats_server_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text("port = 9000\n")
    settings = load_settings({"RVLLM_CONFIG": str(tmp_path / "config.toml")})
    assert ServerLauncher(None, None, port=settings.port).url.endswith(":9000")
    assert ServerLauncher(None, None).url.endswith(":8473")


def test_parameters_are_parsed() -> None:
    assert parse_parameter("temperature", " 0.5 ") == 0.5
    assert parse_parameter("seed", "default") is None
    for name, text in (
        ("seed", "1.5"),
        ("temperature", "warm"),
        ("top_p", "nan"),
        ("colour", "1"),
    ):
        with pytest.raises(ParameterError):
            parse_parameter(name, text)


def test_files_are_attached(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = '```'\n")
    (tmp_path / "b c.txt").write_text("b")
    text = expand('see @a.py, and @"b c.txt" me@x.org @nobody', tmp_path)
    assert text.startswith('see @a.py, and @"b c.txt" me@x.org @nobody\n\n')
    assert "a.py:\n````py\nx = '```'\n````" in text
    assert "b c.txt:\n```txt\nb\n```" in text
    assert mention("b c.txt") == '@"b c.txt"'


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"x" * 300_000, "300,000 bytes"), (b"\xff\xfe", "no UTF-8"), (b"a\0b", "binary")],
)
def test_files_that_cannot_be_attached(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ParameterError, match=told):
        expand("@f", tmp_path)


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such file"):
        expand("@src/none.py", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert expand("@pipe", tmp_path) == "@pipe"  # never read: it would hang


MARKDOWN = """# Title
Some **bold**, `code` and [a link](http://evil.example).

- one
- two
  1. deep

> quote

```python
def f():
    return [1]
```

| a | b |
|---|---|
| 1 | long |
"""


def test_markdown_becomes_text() -> None:
    shown = render_markdown(MARKDOWN).plain
    for part in (
        "Title",
        "bold, code and a link (http://evil.example)",
        "• one",
        "  1. deep",
        "▎ quote",
    ):
        assert part in shown
    for part in ("▏ def f():\n▏     return [1]", "a │ b   \n──┼─────\n1 │ long"):
        assert part in shown


@pytest.mark.parametrize(
    "text",
    ["[/x][bold]", "[@click=app.quit]x[/]", "$primary [connection=x]", "<b>html</b>"],
)
def test_markup_of_the_terminal_is_only_text(text: str) -> None:
    content = render_markdown(text)
    assert content.plain == text
    assert not [span for span in content.spans if "@click" in str(span.style)]


def test_a_half_open_fence_is_code() -> None:
    assert "x = 1" in render_markdown("```py\nx = 1").plain
    assert code_blocks("```py\nx = 1\n\n") == ["x = 1\n\n"]


def test_a_message_tells_its_state() -> None:
    message = ChatMessage(
        "1",
        "c",
        None,
        "assistant",
        "text",
        "thoughts",
        (ToolCall("f", "{}"),),
        MessageState.FAILED,
    )
    message = replace(message, figures={"error": "cut\x1b[2J", "thought_s": 2.0})
    shown = render_message(message, (1, 3)).plain
    for part in ("▸ thought for 2.0 s", "⚙ f({})", "✗ cut␛[2J", "‹ 2/3 ›"):
        assert part in shown
    assert "thoughts" in render_message(message, (0, 1), show_reasoning=True).plain


def test_a_very_long_message_is_cut_and_says_so() -> None:
    shown = render_message(
        ChatMessage("1", "c", None, "assistant", "x" * 1_000_000)
    ).plain
    assert len(shown) < 70_000
    assert "more characters; copy or export" in shown


def session(**values) -> ChatSession:
    stats = ReplyStats(12_000, 11_900, 400, 61.2, 0.21)
    memory = {
        "weights": 4_800_000_000,
        "kv_arena": 5_000_000_000,
        "budget": 36_000_000_000,
    }
    models = (ModelInfo("qwen3-8b 4bit", 32_000),)
    start = ChatSession(
        Chat("c"),
        connection=ConnectionState.READY,
        model="qwen3-8b 4bit",
        models=models,
        stats=stats,
    )
    return replace(start, engine=EngineView(memory=memory), **values)


def test_the_status_line() -> None:
    line = "qwen3-8b 4bit  ctx 12.4k/32k  cached 11.9k  61 tok/s  ttft 0.21s  9.8/36 GB"
    assert status_text(session(), 100) == line
    assert status_text(session(), 50) == "qwen3-8b 4bit  ctx 12.4k/32k  cached 11.9k"
    assert len(status_text(session(model="m" * 300), 20)) == 20
    lost = session(
        connection=ConnectionState.LOST, connection_text="no server\x1b answers"
    )
    assert status_text(lost, 60).startswith("qwen3-8b 4bit  no server␛ answers")


@pytest.mark.parametrize(
    ("tokens", "text", "style"),
    [
        (16_000, "ctx 16k/32k", ""),
        (25_000, "ctx 25k/32k", "$warning"),
        (29_000, "ctx 29k/32k /compact", "$error"),
        (33_000, "ctx 33k/32k too long", "bold $error"),
    ],
)
def test_the_gauge_warns_and_offers_a_summary(
    tokens: int, text: str, style: str
) -> None:
    full = session(stats=ReplyStats(prompt_tokens=tokens))
    assert context_gauge(full) == (text, style)


def test_the_context_is_estimated_while_a_reply_is_written() -> None:
    prompt = ChatMessage("p", "c", None, "user", "x" * 36_000)
    live = LiveReply("r", prompt, True, (), 0.0)
    writing = session(stats=ReplyStats(output_tokens=50), live=live, messages=(prompt,))
    assert "ctx ≈10.1k/32k" in status_text(writing, 100)
    longer = replace(writing, messages=(prompt, prompt, prompt))
    assert "ctx ≈30.1k/32k /compact" in status_text(longer, 100)


def test_before_there_is_a_server_no_model_is_missed() -> None:
    loading = session(
        model="", connection=ConnectionState.LOADING, connection_text="loading it"
    )
    assert status_text(loading, 60) == "loading it"
    assert status_text(session(model=""), 9) == "no model"
    shown = status_content(loading, 60, download="fetching it · 3 MB/s").plain
    assert shown == "fetching it  3 MB/s  Esc pauses"


def test_accepted_drafts_are_shown() -> None:
    stats = replace(session().stats, accepted_drafts=31, rejected_drafts=9)
    assert "61 tok/s  drafts 31/40  ttft" in status_text(session(stats=stats), 120)
    figures = {"output_tokens": 40, "accepted_drafts": 31, "rejected_drafts": 9}
    reply = ChatMessage(
        "r", "c", None, "assistant", "x", model="small", figures=figures
    )
    assert "40 tok · drafts 31/40" in render_message(reply).plain


def test_a_time_that_is_none_is_left_out() -> None:
    figures = {"output_tokens": 4}
    for created in (1e300, float("nan"), -1e18):
        reply = ChatMessage(
            "r",
            "c",
            None,
            "assistant",
            "x",
            model="small",
            figures=figures,
            created=created,
        )
        assert "small · 4 tok" in render_message(reply).plain


def test_counts_and_bars() -> None:
    assert [short_count(one) for one in (0, 999, 1000, 12_400, 131_072)] == [
        "0",
        "999",
        "1k",
        "12.4k",
        "131k",
    ]
    assert (bar(0, 4), bar(0.5, 4), bar(1, 4), bar(9, 4)) == (
        "░░░░",
        "██░░",
        "████",
        "████",
    )


def test_the_engine_panel_condenses_a_large_map() -> None:
    view = EngineView({"free": 9_000, "used": 1_000}, "f" * 9_000 + "u" * 1_000)
    rows = [text for text, style in engine_lines(view, 30) if style == "map"]
    assert len(rows) <= 8
    assert "u" in rows[-1]
    assert ("one cell is 42 blocks", "muted") in engine_lines(view, 30)
    assert "does not show" in engine_lines(None, 30)[0][0]


def test_the_engine_panel_shows_memory_chats_and_speed() -> None:
    request = RunningRequest("req_1", "decode", 120, 120, 7, 64)
    memory = {"weights": 4_000_000_000, "kv_arena": 2_000_000_000, "budget": 8 * 10**9}
    view = EngineView({}, "fu", (request,), {"preemptions": 1}, memory)
    extras = PanelExtras({"req_1": "Teas"}, [10.0, 40.0], [0.2])
    texts = [text for text, _ in engine_lines(view, 30, extras)]
    assert texts[0] == "Memory"
    assert texts[1].endswith("6.00 of 8.0 GB")
    assert texts[2].startswith("weights") and texts[3].startswith("█" * 15 + "░")
    assert "● Teas" in texts
    assert "▂█" in texts
    assert not any("preemptions" in text for text in texts)
    more = PanelExtras(is_more=True)
    assert any("preemptions" in text for text, _ in engine_lines(view, 30, more))


def test_a_sparkline_has_the_last_values() -> None:
    assert sparkline([0.0, 1.0, 2.0, 4.0], 3) == "▂▄█"
    assert sparkline([], 3) == sparkline([0.0], 3) == ""
