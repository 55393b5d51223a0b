"""Thinking is split off at any cut, and calls are read after it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.conversation.output import OutputParser
from rvllm_local.text.families import OutputStyle, style_with
from rvllm_local.text.reasoning import ReasoningSplitter
from rvllm_local.types import FinishReason
from tests.text.outputs import CALL, HERMES, TOOLS, Read, joined, run

THINK = ("<think>", "</think>")
CASES = [
    (
        "<think>\nHm, a </thin< tag.\n</think>\n\nYes.",
        False,
        Read("Yes.", "Hm, a </thin< tag."),
    ),
    ("Hm.\n</think>Yes.", True, Read("Yes.", "Hm.")),
    ("<think>Hm.</think>Yes.", True, Read("Yes.", "Hm.")),
    ("</think>\nYes.", True, Read("Yes.")),
    ("<think></think>Yes.", False, Read("Yes.")),
    ("<think>a</think> <think>b</think>c", False, Read("c", "ab")),
    (
        "\n Yes, use <think> and </think>.\n",
        False,
        Read("\n Yes, use <think> and </think>.\n"),
    ),
    ("<thin", False, Read("<thin")),
    ("<", True, Read("", "<")),
    ("</", True, Read("", "</")),
    ("<think>cut o", False, Read("", "cut o")),
    ("x <think>y</think>z", True, Read("z", "x <think>y")),
    ("", False, Read("")),
    ("</think>Yes.", False, Read("Yes.")),
    ("Hm.</think>", False, Read("Hm.")),
    ("Write `</think>` so.", False, Read("Write `</think>` so.")),
    ("A `</think>` ends it.</think>So.", True, Read("So.", "A `</think>` ends it.")),
    ('I say "yes"</think>"yes"', True, Read('"yes"', 'I say "yes"')),
    ("I say `yes`</think>`yes`", True, Read("`yes`", "I say `yes`")),
]
# A start tag that the model left out, and nobody knew: what was shown stays content.
UNOPENED = [
    ("Hm.\n</think>\n\nYes.", Read("Hm.\n\nYes.")),
    ("Hm.</think>Yes.", Read("Hm.\n\nYes.")),
    ("</think>\n\nYes.", Read("Yes.")),
    ("Hm.</think>\n", Read("Hm.")),
    ("a</think>b</think>c", Read("a\n\nb</think>c")),
]


@pytest.mark.parametrize(("text", "inside", "expected"), CASES)
def test_a_limit_anywhere_shows_no_half_tag(
    text: str, inside: bool, expected: Read
) -> None:
    for length in range(len(text)):
        splitter = ReasoningSplitter(*THINK, starts_inside=inside)
        read = joined([*splitter.feed(text[:length]), *splitter.finish(is_cut=True)])
        whole = expected.reasoning + expected.content
        assert whole.startswith((read.reasoning + read.content).rstrip())


@pytest.mark.parametrize(("text", "inside", "expected"), CASES)
def test_thinking_is_split_off_at_every_cut(
    text: str, inside: bool, expected: Read
) -> None:
    expected = Read(expected.content, expected.reasoning, [], [])
    assert joined(run(ReasoningSplitter(*THINK, inside), list(text))) == expected
    for cut in range(len(text) + 1):
        assert (
            joined(run(ReasoningSplitter(*THINK, inside), [text[:cut], text[cut:]]))
            == expected
        )


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "<",
                "/",
                ">",
                "a",
                " ",
                "\n",
                HERMES,
                "<tool_call>",
            ]
        ),
        max_size=12,
    ),
    inside=st.booleans(),
    size=st.integers(1, 7),
)
def test_any_output_reads_alike_at_any_split(
    parts: list[str], inside: bool, size: int
) -> None:
    text = "".join(parts)

    def parser() -> OutputParser:
        return OutputParser(
            "hermes",
            reasoning_start="<think>",
            reasoning_end="</think>",
            reasoning_starts_inside=inside,
        )

    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert joined(run(parser(), pieces)) == joined(run(parser(), [text]))


@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize(("text", "expected"), UNOPENED)
def test_a_stream_and_a_whole_answer_agree_on_a_thought_that_nobody_opened(
    text: str, expected: Read, tools: Any
) -> None:
    style = OutputStyle("hermes", *THINK)
    for size in range(1, len(text) + 1):
        parser = OutputParser.for_style(style, tools=tools)
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        read = joined(run(parser, parts))
        assert (read.content, read.reasoning) == (expected.content, "")


def test_calls_come_after_a_thought_without_its_start_tag() -> None:
    style = OutputStyle("json", *THINK)
    call = '{"name": "look", "arguments": {"city": "Oslo", "days": 3}}'
    parser = OutputParser.for_style(style, tools=TOOLS)
    assert joined(run(parser, [f"Hm.</think>{call}"])) == Read("Hm.", "", [CALL], [])
    style = OutputStyle("hermes", *THINK)
    parser = OutputParser.for_style(style, tools=TOOLS)
    read = joined(run(parser, [f"{HERMES}</think>So."]))
    assert (read.calls, read.content) == ([CALL], "So.")


@pytest.mark.parametrize("inside", [True, False])
def test_a_turn_that_ends_in_a_thought_with_a_call_calls(inside: bool) -> None:
    """Models forget the end tag, and speak of calls in thoughts that they do close."""
    style = OutputStyle("hermes", *THINK)
    start = "" if inside else THINK[0]

    def read(text: str, **finish: Any) -> Read:
        parser = OutputParser.for_style(style, tools=TOOLS, starts_inside=inside)
        return joined([*parser.feed(start + text), *parser.finish(**finish)])

    unclosed = read(f"I look.\n{HERMES}")
    assert (unclosed.calls, unclosed.reasoning) == ([CALL], "I look.")
    assert read(f"I look.\n{HERMES}</think>So.").calls == []
    assert read(f"I look.\n{HERMES}", reason=FinishReason.LENGTH).calls == []
    assert read("I could write <tool_call> here.").calls == []


@pytest.mark.parametrize("inside", [True, False])
def test_an_answer_in_a_thought_that_the_template_opened_is_content(
    inside: bool,
) -> None:
    """Models that need no thought answer at once, and never close it."""
    style = OutputStyle("hermes", *THINK)

    def read(text: str, reason: FinishReason = FinishReason.STOP) -> Read:
        parser = OutputParser.for_style(style, starts_inside=inside)
        return joined([*parser.feed(text), *parser.finish(reason)])

    start = "" if inside else THINK[0]
    assert read(f"{start}Oslo.\n").content == ("Oslo." if inside else "")
    assert read(f"{start}Oslo.\n").reasoning == "Oslo."
    assert read(f"{start}Oslo.", FinishReason.LENGTH).content == ""
    assert read(f"{start}Hm.</think>").content == ""


WRAPPED = [
    ("<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>", Read("Yes.", "Hm.")),
    ("<answer>Yes.</answer>\n", Read("Yes.\n")),
    ("<think>Hm.</think><answ>", Read("<answ>", "Hm.")),
    ("<think>Hm.</think>An <answer>a</answer>.", Read("An <answer>a</answer>.", "Hm.")),
    ("<think>Hm.</think><answer></answer>", Read("", "Hm.")),
    ("<answer>Yes</answer></answer>", Read("Yes</answer>")),
    ("<answ", Read("<answ")),
]


@pytest.mark.parametrize(("text", "expected"), WRAPPED)
def test_tags_around_an_answer_are_dropped(text: str, expected: Read) -> None:
    template = "{{ '</think>' }}{{ '<answer>' }}{{ '</answer>' }}"
    style = style_with(None, template)
    for size in range(1, len(text) + 1):
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        read = joined(run(OutputParser.for_style(style), parts))
        assert (read.content, read.reasoning) == (expected.content, expected.reasoning)


def test_calls_come_after_thinking() -> None:
    style = OutputStyle("hermes", *THINK)
    read = joined(
        run(
            OutputParser.for_style(style, tools=TOOLS),
            [f"<think>{HERMES}</think>\nSo.\n{HERMES}"],
        )
    )
    assert read == Read("So.", HERMES, [CALL], [])


def test_without_tools_their_syntax_is_content() -> None:
    assert (
        joined(run(OutputParser.for_style(OutputStyle("hermes")), [HERMES])).content
        == HERMES
    )


def test_harmony_is_read_without_tools() -> None:
    text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi"
    assert joined(run(OutputParser.for_style(OutputStyle("harmony")), [text])) == Read(
        "Hi", "Hm", [], []
    )


def test_a_space_of_the_tokenizers_own_is_dropped_once() -> None:
    for parts in ([" Yes", " sir"], ["", " Yes", " sir"], ["Yes", " sir"]):
        parser = OutputParser.for_style(OutputStyle(), drops_space=True)
        assert joined(run(parser, parts)).content == "Yes sir"
    parser = OutputParser.for_style(OutputStyle(), drops_space=False)
    assert joined(run(parser, [" Yes"])).content == " Yes"
