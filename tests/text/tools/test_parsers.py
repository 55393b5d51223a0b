"""Every family's calls are read, at any split of the text; what is broken fails alone, and no tag shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.errors import ParameterError
from rvllm_local.text.tags import CONTROL_TAGS
from rvllm_local.text.tools import FAMILIES, ToolCallFailed, parser_for
from rvllm_local.text.tools.reader import MAX_CALL_CHARS
from tests.text.outputs import OUTPUTS, TOOLS, Read, joined, run

FRAGMENTS = [
    *sorted(CONTROL_TAGS), "```tool_code", "```", "```json", "\n", " ", "{", "}", "[", "]", ",", ":", ";", '"', "\\",
    "name", '"name"', '"arguments"', '"parameters": {', '{"name": "f", "arguments": {"a": 1}}', "f", "f(a=1)", "1",
    "<function=f>", "</function>", "<parameter=a>", "</parameter>", "call:f{a:1}", "function", "final", "analysis",
    "commentary", " to=functions.f ", "é🙂", "<", "assistant",
]  # fmt: skip
# What may never show in content, though parsers that know nothing of a tag leave it alone.
OPENINGS = {
    "hermes": "<tool_call>", "qwen3_coder": "<tool_call>", "glm": "<tool_call>", "llama3": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]", "deepseek": "<｜tool▁call▁begin｜>", "harmony": "<|channel|>",
}  # fmt: skip


@pytest.mark.parametrize(("family", "text", "expected"), OUTPUTS)
def test_outputs_are_read(family: str, text: str, expected: Read) -> None:
    read = joined(run(parser_for(family, TOOLS), [text]))
    assert read == Read(
        expected.content,
        expected.reasoning,
        expected.calls or [],
        expected.failed or [],
    )


@pytest.mark.parametrize(("family", "text", "expected"), OUTPUTS)
def test_every_cut_gives_the_same(family: str, text: str, expected: Read) -> None:
    whole = joined(run(parser_for(family, TOOLS), [text]))
    assert joined(run(parser_for(family, TOOLS), list(text))) == whole
    for cut in range(1, len(text)):
        assert joined(run(parser_for(family, TOOLS), [text[:cut], text[cut:]])) == whole


@pytest.mark.parametrize(("family", "text", "expected"), OUTPUTS)
def test_a_limit_anywhere_shows_no_half_tag(
    family: str, text: str, expected: Read
) -> None:
    for length in range(len(text)):
        parser = parser_for(family, TOOLS)
        pieces = [*parser.feed(text[:length]), *parser.finish(is_cut=True)]
        read = joined(pieces)
        assert expected.content.startswith(read.content.rstrip())
        assert expected.reasoning.startswith(read.reasoning.rstrip())


@pytest.mark.parametrize(
    ("family", "text", "content"),
    [
        ("json", '{"age": 3, "na', '{"age": 3, "na'),
        ("json", '{"name": "Bob", "age": 3, "t', '{"name": "Bob", "age": 3, "t'),
        ("json", '{"name": "look", "argu', ""),
        ("json", "[", ""),
        ("json", "[1", "[1"),
        ("pythonic", "[look", ""),
        ("pythonic", "[look at", "[look at"),
        ("hermes", "a < b", "a < b"),
        ("hermes", "a <", "a "),
    ],
)
def test_only_what_could_be_a_call_is_dropped_at_a_limit(
    family: str, text: str, content: str
) -> None:
    parser = parser_for(family, TOOLS)
    pieces = [*parser.feed(text), *parser.finish(is_cut=True)]
    assert joined(pieces).content == content


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=25),
    size=st.integers(1, 9),
)
def test_anything_ends_in_sound_pieces_at_any_split(
    family: str, fragments: list[str], size: int
) -> None:
    text = "".join(fragments)
    pieces = run(
        parser_for(family), [text[at : at + size] for at in range(0, len(text), size)]
    )
    read = joined(pieces)
    assert read == joined(run(parser_for(family), [text]))
    if family in OPENINGS:
        assert OPENINGS[family] not in read.content


@settings(max_examples=200, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    text=st.text(st.characters(exclude_characters="<[`{"), max_size=80),
)
def test_plain_text_comes_out_as_it_is(family: str, text: str) -> None:
    assert joined(run(parser_for(family), [text])).content == text


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_not_held_back(family: str) -> None:
    parser = parser_for(family)
    assert "".join(
        joined(parser.feed(f"word{i} ")).content for i in range(20)
    ).startswith("word0 word1 ")


def test_arguments_stream_while_they_come() -> None:
    parser = parser_for("hermes")
    parser.feed('<tool_call>{"name": "f", "arguments": {"text": "once upon')
    assert parser.feed(" a time")[0].arguments == " a time"


def test_an_endless_call_is_bounded() -> None:
    parser = parser_for("hermes")
    parser.feed('<tool_call>{"name": "')
    chunk = "x" * (1 << 16)
    pieces = [
        piece for _ in range(40) for piece in parser.feed(chunk)
    ] + parser.finish()
    (failed,) = pieces
    assert isinstance(failed, ToolCallFailed)
    assert len(failed.raw) <= MAX_CALL_CHARS + 1


def test_deep_arguments_fail_alone() -> None:
    text = (
        '<tool_call>{"name": "f", "arguments": '
        + '{"a":' * 5000
        + "1"
        + "}" * 5001
        + "</tool_call>after"
    )
    read = joined(run(parser_for("hermes"), [text]))
    assert read.content == "after"
    assert len(read.failed or []) == 1


def test_calls_have_ids_of_their_own() -> None:
    pieces = run(
        parser_for("mistral"),
        [
            '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'
        ],
    )
    ids = [piece.call_id for piece in pieces if hasattr(piece, "call_id")]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ParameterError, match="'klingon' is unknown"):
        parser_for("klingon")
