"""Calls in forms that are not the model's own are read, and what only looks like one is text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.text.tools import FAMILIES, tolerant_parser_for
from tests.text.outputs import ARGUMENTS, CALL, OUTPUTS, TOOLS, Read, joined, run

OBJECT = '{"name": "look", "arguments": ' + ARGUMENTS + "}"
PARAMETERS = "<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
SEP = "<｜tool▁sep｜>"
BEGIN, END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
# A family, and the call of `look` as its models wrote it all the same.
WRITTEN = [
    ("hermes", OBJECT),
    ("hermes", f"{OBJECT}\n</tool_call>"),
    ("hermes", f"```json\n{OBJECT}\n```"),
    ("hermes", f"```xml\n<tool_call>{OBJECT}</tool_call>\n```"),
    ("hermes", f"<tools>{OBJECT}</tools>"),
    ("hermes", f"<function_call>{OBJECT}</function_call>"),
    ("hermes", f"<tool_call>\n{OBJECT[:-1]}"),
    ("hermes", f"<tool_call>\n{OBJECT[:-2]}"),
    ("hermes", f"<tool_call>{OBJECT}}}</tool_call>"),
    ("hermes", f'<tool_call>{{"function": "look", "arguments": {ARGUMENTS}}}</tool_call>'),
    ("hermes", f'<tool_call>{{"function": "look", "parameters": {ARGUMENTS}}}</tool_call>'),
    ("hermes", f'<tool_call>{{"tool": "look", "arguments": {ARGUMENTS}}}</tool_call>'),
    ("hermes", f'<tool_call>{{"action": "look", "action_input": {ARGUMENTS}}}</tool_call>'),
    ("hermes", f'<tool_call>{{"look": {ARGUMENTS}}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "look", "city": "Oslo", "days": 3}</tool_call>'),
    ("hermes", f'<tool_call>{{"tool_calls": [{OBJECT}]}}</tool_call>'),
    ("hermes", '<tool_call>{name: "look", arguments: {city: "Oslo", days: 3}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "look", "arguments": {"city": """Oslo""", "days": 3,}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "look", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}</tool_call>'),
    ("hermes", '<tool_call>"{\\"name\\": \\"look\\", \\"arguments\\": {\\"city\\": \\"Oslo\\", \\"days\\": 3}}"</tool_call>'),
    ("hermes", f'<tool_call>{{"name": "functions.look", "arguments": {ARGUMENTS}}}</tool_call>'),
    ("hermes", '<tool_call>look(city="Oslo", days=3)</tool_call>'),
    ("hermes", f"<tool_call>look\n{ARGUMENTS}</tool_call>"),
    ("hermes", f"<tool_call><function=look>{PARAMETERS}</function></tool_call>"),
    ("hermes", f"<function=look>{ARGUMENTS}</function>"),
    ("hermes", f"[TOOL_CALLS][{OBJECT}]"),
    ("qwen3_coder", f"<tool_call>\n<function=look>\n{PARAMETERS}</function>"),
    ("qwen3_coder", f"<tool_call>\n<function=look>\n{PARAMETERS}"),
    ("qwen3_coder", f"<function=look>\n{PARAMETERS}"),
    ("qwen3_coder", f"<tool_call>\n<function=look>\n{PARAMETERS.removesuffix('</parameter>' + chr(10))}</function>\n</tool_call>"),
    ("qwen3_coder", f"<tool_call>\n<function=look>\n{ARGUMENTS}</function>\n</tool_call>"),
    ("qwen3_coder", f"<tool_call>\nlook\n{PARAMETERS}</function>\n</tool_call>"),
    ("qwen3_coder", '<tool_call><function name="look"><parameter name="city">Oslo</parameter><parameter name="days">3</parameter></function></tool_call>'),
    ("qwen3_coder", '<tool_call><function="look"><parameter="city">Oslo</parameter><parameter="days">3</parameter></function></tool_call>'),
    ("glm", "<tool_call>look<arg_key>city</arg_key><arg_value>Oslo</arg_value><arg_key>days</arg_key><arg_value>3</arg_value>"),
    ("glm", "<tool_call>look<arg_key>city</arg_key><arg_value>Oslo</arg_value><arg_key>days</arg_key><arg_value>3"),
    ("glm", "<tool_call>look<arg_key>city</arg_key>Oslo</arg_value><arg_key>days<arg_value>3</arg_value></tool_call>"),
    ("glm", "look<arg_key>city</arg_key><arg_value>Oslo</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"),
    ("k2_horizon", "<ifm|tool_calls><ifm|tool_call>look<ifm|arg_key>city</ifm|arg_key><ifm|arg_type>string</ifm|arg_type><ifm|arg_value>Oslo</ifm|arg_value><ifm|arg_key>days</ifm|arg_key><ifm|arg_value>3</ifm|arg_value></ifm|tool_call></ifm|tool_calls>"),
    ("k2_horizon", f"<ifm|tool_calls><ifm|tool_call>{OBJECT}</ifm|tool_call></ifm|tool_calls>"),
    ("lfm2", '<|tool_call_start|>[look(city="Oslo", days=3)]'),
    ("lfm2", '<|tool_call_start|>[look(city="Oslo", days=3)<|tool_call_end|>'),
    ("lfm2", '[look(city="Oslo", days=3)]'),
    ("lfm2", f"<tool_call>{OBJECT}</tool_call>"),
    ("deepseek_v31", f"{BEGIN}look{SEP}```json\n{ARGUMENTS}\n```{END}"),
    ("deepseek_v31", f"{BEGIN}look{SEP}{ARGUMENTS}<｜tool▁calls▁end｜>"),
    ("deepseek", f"{BEGIN}function{SEP}look\n```\n{ARGUMENTS}\n```{END}"),
    ("deepseek", f"{BEGIN}function{SEP}look\n{ARGUMENTS}{END}"),
    ("llama3", f"<function=look>{ARGUMENTS}</function>"),
    ("llama3", f"<function=look>{ARGUMENTS}<function>"),
    ("llama3", f"<function>look{ARGUMENTS}</function>"),
    ("llama3", f"<function=look,{ARGUMENTS}</function>"),
    ("llama3", f"<function=look{ARGUMENTS}></function>"),
    ("llama3", f'{{"function": "look", "parameters": {ARGUMENTS}}}'),
    ("llama3", '[look(city="Oslo", days=3)]'),
    ("llama3", f"```json\n{OBJECT}\n```"),
    ("gemma", '```python\nlook(city="Oslo", days=3)\n```'),
    ("gemma", f"```\n{OBJECT}\n```"),
    ("gemma", f"```tool_call\n{OBJECT}\n```"),
    ("gemma", '```tool_code\nprint(look(city="Oslo", days=3))'),
    ("gemma", '[look(city="Oslo", days=3)]'),
    ("gemma4", '<|tool_call>call:look{city:<|"|>Oslo<|"|>,days:3'),
    ("gemma4", '<|tool_call>call:look(city="Oslo", days=3)<tool_call|>'),
    ("gemma4", "<|tool_call>call:look{city:'Oslo',days:3}<tool_call|>"),
    ("gemma4", f"<|tool_call>{OBJECT}<tool_call|>"),
    ("gemma4", 'call:look{city:<|"|>Oslo<|"|>,days:3}'),
    ("functionary", f"functools[{OBJECT}]"),
    ("functionary_v2", f"functools[{OBJECT}]"),
    ("function_tag", f"<function=look>{ARGUMENTS}"),
    ("phi", f"functools[{OBJECT}]"),
    ("mistral", f"[{OBJECT}]"),
    ("mistral", '[TOOL_CALLS]look(city="Oslo", days=3)'),
    ("mistral", f"look[ARGS]{ARGUMENTS}"),
    ("kimi", f"<|tool_call_begin|>functions.look:0{ARGUMENTS}<|tool_call_end|>"),
    ("kimi", f"functions.look:0{ARGUMENTS}"),
    ("minimax", '<invoke name="look"><parameter name="city">Oslo</parameter><parameter name="days">3</parameter></minimax:tool_call>'),
    ("minimax", f"<minimax:tool_call>{OBJECT}</minimax:tool_call>"),
    ("harmony", f"<|channel|>commentary to=functions.look<|message|>[{ARGUMENTS}]<|call|>"),
    ("harmony", f"<|channel|>commentary to=functions.look<|message|>{ARGUMENTS}]<|call|>"),
    ("harmony", f"<|channel|>final<|message|>{OBJECT}"),
    ("pythonic", 'look(city="Oslo", days=3)'),
    ("pythonic", '<|python_start|>[look(city="Oslo", days=3)]<|python_end|>'),
    ("json", f"functools[{OBJECT}]"),
]  # fmt: skip
# Two calls without what should part them.
TWICE = [
    ("hermes", f"<tool_call>{OBJECT}{OBJECT}</tool_call>"),
    ("hermes", f"<tool_call>{OBJECT}\n<tool_call>{OBJECT}"),
    ("hermes", f"{OBJECT}\n{OBJECT}"),
    ("hermes", f"<tool_call>{OBJECT}; {OBJECT}</tool_call>"),
    ("qwen3_coder", f"<tool_call>; {OBJECT}; {OBJECT}"),
    ("qwen3_coder", f"<tool_call>{OBJECT}; {OBJECT}</tool_call>"),
    ("glm", 2 * f"<tool_call>look\n{ARGUMENTS}"),
    ("qwen3_coder", 2 * f"<tool_call><function=look>{PARAMETERS}</function>"),
    ("qwen3_coder", 2 * f"<tool_call><function=look>{PARAMETERS}"),
    ("deepseek_v31", 2 * f"{BEGIN}look{SEP}{ARGUMENTS}"),
    ("kimi", 2 * f"<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{ARGUMENTS}"),
    ("lfm2", 2 * '<|tool_call_start|>[look(city="Oslo", days=3)]'),
    ("gemma4", '<|tool_call>call:look{city:Oslo,days:3}call:look{city:Oslo,days:3}<tool_call|>'),
    ("mistral", f"[TOOL_CALLS][{OBJECT} {OBJECT}]"),
    ("function_tag", 2 * f"<function=look>{ARGUMENTS}"),
    ("minimax", 2 * '<invoke name="look"><parameter name="city">Oslo</parameter><parameter name="days">3</parameter>'),
]  # fmt: skip
# What speaks of calls, or of other tools, or goes on as no call does.
TEXTS = [
    OBJECT.replace("look", "book"),
    f"```json\n{OBJECT.replace('look', 'book')}\n```",
    f"```json\n{OBJECT}\n```\nThis is how a call looks.",
    f"{OBJECT}\nis what I would write.",
    f"Write {OBJECT}",
    f"Write `<function=look>{ARGUMENTS}</function>`.",
    "<function=book>{}</function>",
    "functools[1, 2]",
    "[1] look at this [2]",
    "look(ing) around",
    "look: it is {not} a call",
    "look\nat this",
    '{"name": "look", "age": 3}',
    '{"city": "Oslo", "days": 3}',
    "```python\nlook = 3\n```",
    "```xml\n<a>look</a>\n```",
    "<tools> and <function> are tags",
    '[{"type": "text", "text": "look"}]',
]


@pytest.mark.parametrize(("family", "text"), WRITTEN)
def test_a_call_is_read_at_every_split(family: str, text: str) -> None:
    expected = Read(calls=[CALL], failed=[])
    _is_read_at_every_split(family, text, expected)


@pytest.mark.parametrize(("family", "text"), TWICE)
def test_two_calls_are_read_without_what_parts_them(family: str, text: str) -> None:
    expected = Read(calls=[CALL, CALL], failed=[])
    _is_read_at_every_split(family, text, expected)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", ["hermes", "gemma4"])
def test_what_only_looks_like_a_call_is_text(family: str, text: str) -> None:
    expected = Read(text, calls=[], failed=[])
    _is_read_at_every_split(family, text, expected)


def _is_read_at_every_split(family: str, text: str, expected: Read) -> None:
    splits = [[text], list(text)]
    splits += [[text[:cut], text[cut:]] for cut in range(1, len(text), 9)]
    for pieces in splits:
        assert joined(run(tolerant_parser_for(family, TOOLS), pieces)) == expected


@pytest.mark.parametrize(("family", "text", "expected"), OUTPUTS)
def test_what_the_own_parser_reads_stays(
    family: str, text: str, expected: Read
) -> None:
    read = joined(run(tolerant_parser_for(family, TOOLS), [text]))
    calls = expected.calls or []
    assert (read.calls or [])[: len(calls)] == calls
    assert read.reasoning == expected.reasoning
    if not expected.failed and read.calls == calls:
        assert read.content == expected.content


@settings(max_examples=100, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    fragments=st.lists(
        st.sampled_from([*TEXTS, *(text for _, text in WRITTEN), "\n", "look", "{", "```"]),
        max_size=4,
    ),
    size=st.integers(1, 40),
)  # fmt: skip
def test_any_mixture_is_the_same_at_any_split(
    family: str, fragments: list[str], size: int
) -> None:
    text = "".join(fragments)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    whole = joined(run(tolerant_parser_for(family, TOOLS), [text]))
    assert joined(run(tolerant_parser_for(family, TOOLS), pieces)) == whole


def test_text_is_shown_while_it_comes() -> None:
    parser = tolerant_parser_for("hermes", TOOLS)
    said = ""
    for number in range(100):
        said += joined(parser.feed(f'word {number} {{"a": [1]}}\n')).content
    assert said.startswith("word 0 ") and len(said) > 1000


def test_a_call_that_nobody_can_read_is_shown() -> None:
    parser = tolerant_parser_for("hermes", TOOLS)
    text = "<tool_call>look at this</tool_call>"
    pieces = parser.feed(f"Hm. {text} Well.") + parser.finish()
    assert joined(pieces) == Read(f"Hm.{text} Well.", calls=[], failed=[])


def test_half_a_call_that_a_limit_cut_is_not_mended() -> None:
    parser = tolerant_parser_for("hermes", TOOLS)
    pieces = parser.feed(f"<tool_call>{OBJECT[:-2]}") + parser.finish(is_cut=True)
    assert joined(pieces).calls == []
