"""A thought is shown as it comes, but for a call that may end it."""

from __future__ import annotations

from rvllm_local.text.thought_calls import ThoughtCalls
from tests.text.outputs import ARGUMENTS, CALL, HERMES, TOOLS, joined


def test_a_call_is_held_back_and_the_text_before_it_is_not() -> None:
    held = ThoughtCalls("hermes", TOOLS)
    shown = "".join(held.feed(char) for char in f"I look.\n{HERMES}")
    assert shown == "I look."
    assert joined(held.calls()).calls == [CALL]
    assert held.rest() == ""


def test_a_call_that_more_text_follows_is_shown() -> None:
    held = ThoughtCalls("hermes", TOOLS)
    text = f"I could write {HERMES} here."
    assert "".join(held.feed(char) for char in text) + held.rest() == text
    assert held.calls() == []


def test_a_closed_thought_gives_back_what_was_held() -> None:
    held = ThoughtCalls("hermes", TOOLS)
    assert held.feed(f"I look. {HERMES}") == "I look."
    assert held.rest() == f" {HERMES}"
    assert held.calls() == []


def test_a_word_about_a_tag_does_not_stop_the_stream() -> None:
    held = ThoughtCalls("hermes", TOOLS)
    held.feed("The tag <tool_call> begins")
    assert len(held.feed(" a call." + 40 * " So it is.")) > 300


def test_every_word_of_a_thought_comes_once() -> None:
    text = f"a <tool_call> b {HERMES} c <tool_c d\n<tool_call>{ARGUMENTS} \n"
    for size in range(1, 9):
        held = ThoughtCalls("hermes", TOOLS)
        starts = range(0, len(text), size)
        shown = "".join(held.feed(text[start : start + size]) for start in starts)
        assert shown + held.rest() == text


def test_without_tags_of_its_own_a_family_holds_nothing_back() -> None:
    held = ThoughtCalls("json", TOOLS)
    assert held.feed('{"name": "look"') == '{"name": "look"'
