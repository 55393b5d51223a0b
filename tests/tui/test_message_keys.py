"""What the keys do with a selected message."""

from __future__ import annotations

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.message_keys import message_keys

PROMPT = ChatMessage("p", "c", None, "user", "hi")
REPLY = ChatMessage("r", "c", "p", "assistant", "```\nx\n```", reasoning="hm")


def test_only_what_means_something_is_told() -> None:
    line = "c copy   e edit   r again   b branch   Del delete   Esc back"
    assert message_keys(PROMPT, 1, {}, 100) == line
    line = message_keys(REPLY, 2, {}, 100)
    assert "edit" not in line
    for words in ("[ ] versions", "C code", "t thoughts"):
        assert words in line


def test_remapped_keys_are_told() -> None:
    assert "y copy" in message_keys(PROMPT, 1, {"message.copy": "y"}, 100)


def test_a_narrow_line_keeps_the_way_out() -> None:
    assert message_keys(REPLY, 2, {}, 33) == "c copy   [ ] versions   Esc back"
    assert message_keys(REPLY, 2, {}, 5) == "Esc back"
