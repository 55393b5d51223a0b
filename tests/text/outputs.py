"""Outputs of every family as models write them, and what they should be read as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ThoughtClosed,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]


@dataclass
class Read:
    """An output once it is read: content, reasoning, calls (name and arguments), failures (raw text)."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] | None = None
    failed: list[str] | None = None


def joined(pieces: Sequence[Piece]) -> Read:
    """Pieces put together; asserts that they come in a sound order."""
    read = Read(calls=[], failed=[])
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    closed = -1
    for piece in pieces:
        match piece:
            case ContentDelta(text):
                read.content += text
                assert text
            case ReasoningDelta(text):
                read.reasoning += text
                assert text
            case ThoughtClosed():
                pass
            case ToolCallStart(index, call_id, name):
                assert index == closed + 1 and index not in names and name and call_id
                names[index], arguments[index] = name, ""
            case ToolCallDelta(index, text):
                assert index in names and index == closed + 1
                arguments[index] += text
            case ToolCallEnd(index):
                assert index == closed + 1
                closed = index
                value = json.loads(arguments[index])
                assert isinstance(value, dict)
                read.calls.append((names[index], value))
            case ToolCallFailed(index, raw, reason):
                assert index == closed + 1 and raw and reason and "\n" not in reason
                closed = index
                read.failed.append(raw)
    return read


def run(parser: ToolParser, pieces: Sequence[str]) -> list[Piece]:
    return [piece for text in pieces for piece in parser.feed(text)] + parser.finish()


CALL = ("look", {"city": "Oslo", "days": 3})
ARGUMENTS = '{"city": "Oslo", "days": 3}'
HERMES = '<tool_call>\n{"name": "look", "arguments": ' + ARGUMENTS + "}\n</tool_call>"
QWEN = (
    "<tool_call>\n<function=look>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
GLM = (
    "<tool_call>look\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n"
    + ARGUMENTS
    + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>"
    + ARGUMENTS
    + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
HARMONY = (
    "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
    + ARGUMENTS
    + "<|call|>"
)
GEMMA_FUNCTION = "<start_function_call>call:look{city:<escape>Oslo<escape>,days:3}<end_function_call>"

GEMMA_4 = '<|tool_call>call:look{city:<|"|>Oslo<|"|>,days:3}<tool_call|>'
LFM = '<|tool_call_start|>[look(city="Oslo", days=3)]<|tool_call_end|>'
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>"
)
MINIMAX = (
    '<minimax:tool_call>\n<invoke name="look">\n<parameter name="city">Oslo</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'
)
SEED = (
    "<seed:tool_call>\n<function=look>\n<parameter=city>Oslo</parameter>\n"
    "<parameter=days>3</parameter>\n</function>\n</seed:tool_call>"
)
NEMOTRON = f'<TOOLCALL>[{{"name": "look", "arguments": {ARGUMENTS}}}]</TOOLCALL>'
PHI = f'<|tool_call|>[{{"name": "look", "arguments": {ARGUMENTS}}}]<|/tool_call|>'
FUNCTION = f"<function=look>{ARGUMENTS}</function>"
PYTHONIC = '[look(city="Oslo", days=3)]'

M3 = "]<]minimax[>["
MINIMAX_M3 = (
    f'{M3}<tool_call>\n{M3}<invoke name="look">{M3}<city>Oslo{M3}</city>'
    f"{M3}<days>3{M3}</days>{M3}</invoke>\n{M3}</tool_call>"
)
DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="look">\n'
    '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)
MINICPM = (
    '<function name="look"><param name="city">Oslo</param>'
    '<param name="days">3</param></function>'
)
MUSE = (
    '<atem:function_calls>\n<atem:invoke name="look">\n'
    '<atem:parameter name="city">Oslo</atem:parameter>\n'
    '<atem:parameter name="days">3</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>"
)
LONGCAT = (
    "<longcat_tool_call>look\n<longcat_arg_key>city</longcat_arg_key>\n"
    "<longcat_arg_value>Oslo</longcat_arg_value>\n"
    "<longcat_arg_key>days</longcat_arg_key>\n"
    "<longcat_arg_value>3</longcat_arg_value>\n</longcat_tool_call>"
)
KIMI_K3 = (
    '<|open|>tools<|sep|><|open|>call tool="look" index="1"<|sep|>'
    '<|open|>argument key="city" type="string"<|sep|>Oslo<|close|>argument<|sep|>'
    '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>"
)
COHERE = (
    '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "look", '
    f'"parameters": {ARGUMENTS}}}\n]<|END_ACTION|>'
)
NAMED = '{"name": "look", "parameters": ' + ARGUMENTS + "}"

PLAMO = (
    "<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|>"
    "<|plamo:begin_tool_name:plamo|>look<|plamo:end_tool_name:plamo|>"
    "<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>"
    + ARGUMENTS
    + "<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>"
    "<|plamo:end_tool_requests:plamo|>"
)
SOLAR = (
    "<|tool_calls|><|tool_call:begin|>a1<|tool_call:name|>look<|tool_call:args|>"
    + ARGUMENTS
    + "<|tool_call:end|>"
)
DOTS = (
    '<dots_function_call>\n<invoke name="look">\n<parameter name="city">Oslo'
    '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
    "</dots_function_call>"
)
GIGACHAT = (
    '<｜GCML｜tool_calls>\n<｜GCML｜invoke name="look">\n<｜GCML｜parameter name="city" '
    'string="true">Oslo</｜GCML｜parameter>\n<｜GCML｜parameter name="days" '
    'string="false">3</｜GCML｜parameter>\n</｜GCML｜invoke>\n</｜GCML｜tool_calls>'
)
# Family, output, what it is read as.
OUTPUTS: list[tuple[str, str, Read]] = [
    ("hermes", "Hello, world.\n", Read("Hello, world.\n")),
    ("hermes", f"Let me see.\n\n{HERMES}", Read("Let me see.", calls=[CALL])),
    ("hermes", f"{HERMES}\n{HERMES}\n", Read(calls=[CALL, CALL])),
    ("hermes", HERMES.removesuffix("\n</tool_call>"), Read(calls=[CALL])),
    ("hermes", f"{HERMES}\nDone </tool_call>!", Read("\nDone !", calls=[CALL])),
    ("hermes", "a <tool_cal and <tool_callx> b < c", Read("a <tool_cal and <tool_callx> b < c")),
    ("hermes", "a <tool_call", Read("a <tool_call")),
    ("hermes", '<tool_call>{"arguments": {"a": [1, {"b": null}]}, "name": "f"}</tool_call>', Read(calls=[("f", {"a": [1, {"b": None}]})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', Read(calls=[("f", {"a": 1})])),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', Read(calls=[("f", {})])),
    ("hermes", '<tool_call>{"id": 7, "type": "function", "function": {"name": "f", "arguments": {}}}</tool_call>', Read(calls=[("f", {})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', Read(calls=[("f", {"a": "</tool_call>"})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>', Read(calls=[("f", {"a": "x\ny"})])),
    ("hermes", "<tool_call>f(1)</tool_call>ok", Read("ok", failed=["<tool_call>f(1)</tool_call>"])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": </tool_call>ok', Read("ok", failed=['<tool_call>{"name": "f", "arguments": {"a": </tool_call>'])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>', Read(failed=['<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>'])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a"', Read(failed=['<tool_call>{"name": "f", "arguments": {"a"'])),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', Read(failed=['<tool_call>{"name": "f", "arguments": [1]}</tool_call>'])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}\n{"name": "g"}</tool_call>a', Read("a", calls=[("f", {}), ("g", {})])),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g"}]</tool_call>a', Read("a", calls=[("f", {}), ("g", {})])),
    ("hermes", "<tool_call>\n{'name': 'f', 'arguments': {'a': True, 'b': \"it's\"}}\n</tool_call>a", Read("a", calls=[("f", {"a": True, "b": "it's"})])),
    ("hermes", '<tool_call>\n```json\n{"name": "f", "arguments": {"a": 1}}\n```\n</tool_call>a', Read("a", calls=[("f", {"a": 1})])),
    ("hermes", '<tool_call>```{"name": "f", "arguments": {}}```</tool_call>a', Read("a", calls=[("f", {})])),
    ("hermes", '<tool_call>`f`</tool_call>a', Read("a", failed=["<tool_call>`f`</tool_call>"])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1, 2,], "b": {"c": 3,},},}</tool_call>a', Read("a", calls=[("f", {"a": [1, 2], "b": {"c": 3}})])),
    ("hermes", """<tool_call>{"name": 'f', "arguments": {'a': 'say "no"', 'b': 'it\\'s', "c": [True, None]}}</tool_call>a""", Read("a", calls=[("f", {"a": 'say "no"', "b": "it's", "c": [True, None]})])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {,}}</tool_call>a', Read("a", failed=['<tool_call>{"name": "f", "arguments": {,}}</tool_call>'])),
    ("hermes", "<tool_call>{'name': f}</tool_call>a", Read("a", failed=["<tool_call>{'name': f}</tool_call>"])),
    # What models write beside their own form, as users of other servers report it.
    ("hermes", r'<tool_call>{"name": "look", "arguments": {"city": "\d+\.\w"}}</tool_call>', Read(calls=[("look", {"city": r"\d+\.\w"})])),
    ("hermes", r'<tool_call>{"name": "look", "arguments": {"city": "C:\Users\u0041\users"}}</tool_call>', Read(calls=[("look", {"city": r"C:\UsersA\users"})])),
    ("hermes", '<tool_call>{{"name": "look", "arguments": {"city": "a"}}}</tool_call>', Read(calls=[("look", {"city": "a"})])),
    ("hermes", '<tool_call>{"name": "look", "arguments": {"city": "a"}</tool_call>.', Read(".", calls=[("look", {"city": "a"})])),
    ("qwen3_coder", '<tool_call>{"name": "look", "arguments": {"city": "a"}}</tool_call>', Read(calls=[("look", {"city": "a"})])),
    ("qwen3_coder", "<tool_call>\n<function=look>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", Read(calls=[("look", {"city": "Oslo", "days": 3})])),
    ("qwen3_coder", "<tool_call><function=look><parameter=city>\na\n<parameter=other>\nb</parameter></function></tool_call>", Read(calls=[("look", {"city": "a\n<parameter=other>\nb"})])),
    ("qwen3_coder", "<tool_call><function=look><parameter=city>a</parameter></tool_call>.", Read(".", calls=[("look", {"city": "a"})])),
    ("qwen3_coder", "<tool_call><function=look><parameter=city>a</parameter></function>\n<function=f></function></tool_call>.", Read(".", calls=[("look", {"city": "a"}), ("f", {})])),
    ("kimi", "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|><|tool_call_end|>", Read(calls=[("f", {})])),
    ("llama3", '<|python_tag|>look.call(city="a")', Read(calls=[("look", {"city": "a"})])),
    ("lfm2", '<|tool_call_start|>[{"name": "look", "arguments": {"city": "a"}}, {"name": "f", "arguments": {}}]<|tool_call_end|>.', Read(".", calls=[("look", {"city": "a"}), ("f", {})])),
    ("lfm2", '<|tool_call_start|>{"name": "look", "arguments": {"city": "a"}}<|tool_call_end|>', Read(calls=[("look", {"city": "a"})])),
    ("qwen3_coder", f"Well:\n{QWEN}", Read("Well:", calls=[CALL])),
    ("qwen3_coder", QWEN.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>") + "!", Read("!", calls=[CALL])),
    ("qwen3_coder", "<tool_call><function=look><parameter=city>12</parameter></function></tool_call>", Read(calls=[("look", {"city": "12"})])),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>True</parameter><parameter=b>{\"c\": [</parameter></function></tool_call>", Read(calls=[("f", {"a": True, "b": '{"c": ['})])),
    ("qwen3_coder", "<tool_call><function=f></function></tool_call>", Read(calls=[("f", {})])),
    ("qwen3_coder", "<tool_call><function=f><oops></tool_call>.", Read(".", failed=["<tool_call><function=f><oops></tool_call>"])),
    ("glm", f"So {GLM}", Read("So", calls=[CALL])),
    ("glm", "<tool_call>f</tool_call>", Read(calls=[("f", {})])),
    ("glm", "<tool_call>f<arg_key>a</arg_key>", Read(failed=["<tool_call>f<arg_key>a</arg_key>"])),
    ("llama3", '{"name": "look", "parameters": ' + ARGUMENTS + "}", Read(calls=[CALL])),
    ("llama3", '<|python_tag|>{"name": "look", "parameters": ' + ARGUMENTS + "}", Read(calls=[CALL])),
    ("llama3", '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', Read(calls=[("f", {}), ("g", {})])),
    ("llama3", '{"name": "Bob", "age": 3}', Read('{"name": "Bob", "age": 3}')),
    ("llama3", "{not json} at all", Read("{not json} at all")),
    ("llama3", 'It is {"name": "f", "parameters": {}}', Read('It is {"name": "f", "parameters": {}}')),
    ("llama3", '<|python_tag|>brave.call(query="x")', Read(failed=['<|python_tag|>brave.call(query="x")'])),
    ("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": ' + ARGUMENTS + '}, {"name": "f", "arguments": {}}]', Read(calls=[CALL, ("f", {})])),
    ("mistral", f"Ok.[TOOL_CALLS]look[ARGS]{ARGUMENTS}[TOOL_CALLS]f[CALL_ID]abc[ARGS]{{}}", Read("Ok.", calls=[CALL, ("f", {})])),
    ("mistral", f"[TOOL_CALLS]look{ARGUMENTS}", Read(calls=[CALL])),
    ("mistral", "[TOOL_CALLS]", Read(failed=["[TOOL_CALLS]"])),
    ("mistral", "a [TOOL_CALL] list[0]", Read("a [TOOL_CALL] list[0]")),
    ("gemma", '```tool_code\nprint(default_api.look(city="Oslo", days=3))\n```', Read(calls=[CALL])),
    ("gemma", "```tool_code\n[look(city='Oslo', days=3), f(a=[True, none])]\n```", Read(failed=["```tool_code\n[look(city='Oslo', days=3), f(a=[True, none])]\n```"])),
    ("gemma", "```tool_code\n[look(city='Oslo', days=3), f(a=[true, None])]\n```", Read(calls=[CALL, ("f", {"a": [True, None]})])),
    ("gemma", '```tool_code\n{"name": "look", "parameters": ' + ARGUMENTS + "}\n```", Read(calls=[CALL])),
    ("gemma", '```tool_code\nlook(city="```\\"\'", days=3)\n```', Read(calls=[("look", {"city": "```\"'", "days": 3})])),
    ("gemma", "```python\nlook(1)\n```", Read("```python\nlook(1)\n```")),
    ("gemma", "```tool_code\nimport os\n```", Read(failed=["```tool_code\nimport os\n```"])),
    ("gemma", f"{GEMMA_FUNCTION} .\n", Read(" .\n", calls=[CALL])),
    ("gemma", "<start_function_call>call:f{a:{b:[1,<escape>x,}<escape>]},c:yes}<end_function_call>", Read(calls=[("f", {"a": {"b": [1, "x,}"]}, "c": "yes"})])),
    ("deepseek", f"Hm.{DEEPSEEK}", Read("Hm.", calls=[CALL])),
    ("deepseek_v31", f"Hm.{DEEPSEEK_31}", Read("Hm.", calls=[CALL])),
    ("deepseek", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>nope<｜tool▁call▁end｜>", Read(failed=["<｜tool▁call▁begin｜>f<｜tool▁sep｜>nope<｜tool▁call▁end｜>"])),
    ("harmony", f"<|channel|>analysis<|message|>Think.<|end|><|start|>assistant{HARMONY}", Read(reasoning="Think.", calls=[CALL])),
    ("harmony", HARMONY.removesuffix("<|call|>"), Read(calls=[CALL])),
    ("harmony", " to=functions.look<|channel|>commentary json<|message|>" + ARGUMENTS, Read(calls=[CALL])),
    ("harmony", "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>", Read("Hi", "Hm")),
    ("harmony", "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant" + HARMONY, Read("I will look.", calls=[CALL])),
    ("harmony", "just text to=x", Read("just text to=x")),
    ("harmony", "<|channel|>commentary to=functions.f<|message|>oops<|call|>", Read(failed=["<|channel|> commentary to=functions.f<|message|>oops<|call|>"])),
    ("gemma4", f"Well. {GEMMA_4}", Read("Well.", calls=[CALL])),
    ("gemma4", f"{GEMMA_4}{GEMMA_4}", Read(calls=[CALL, CALL])),
    ("gemma4", '<|tool_call>call:f{a:{b:[1,<|"|>x,}<|"|>]},c:null,d:"e, f"}<tool_call|>', Read(calls=[("f", {"a": {"b": [1, "x,}"]}, "c": None, "d": "e, f"})])),
    ("gemma4", "<|tool_call>call:f{a:<tool_call|>", Read(failed=["<|tool_call>call:f{a:<tool_call|>"])),
    ("lfm2", f"{LFM}Done.", Read("Done.", calls=[CALL])),
    ("lfm2", '<|tool_call_start|>[f(a=[1, {"b": True}]), g()]<|tool_call_end|>', Read(calls=[("f", {"a": [1, {"b": True}]}), ("g", {})])),
    ("lfm2", "<|tool_call_start|>[f(1)]<|tool_call_end|>", Read(failed=["<|tool_call_start|>[f(1)]<|tool_call_end|>"])),
    ("pythonic", PYTHONIC, Read(calls=[CALL])),
    ("pythonic", '[f(a="x]y"), g(b=[1])]', Read(calls=[("f", {"a": "x]y"}), ("g", {"b": [1]})])),
    ("pythonic", '[f(from="a", class="b = c, to=d"), get-it(x=1)]', Read(calls=[("f", {"from": "a", "class": "b = c, to=d"}), ("get-it", {"x": 1})])),
    ("pythonic", '[look("Oslo", days=3), look("Oslo", 3)]', Read(calls=[CALL, CALL])),
    ("pythonic", '[f(a="""x\n"y"], z""", b=\'\'\'it\'s\'\'\')]', Read(calls=[("f", {"a": 'x\n"y"], z', "b": "it's"})])),
    ("pythonic", '[look("Oslo", 3, 4)]', Read('[look("Oslo", 3, 4)]')),
    ("lfm2", '<|tool_call_start|>[look("Oslo", city="Rome")]<|tool_call_end|>', Read(failed=['<|tool_call_start|>[look("Oslo", city="Rome")]<|tool_call_end|>'])),
    ("pythonic", "[1, 2]", Read("[1, 2]")),
    ("pythonic", "[see](there)", Read("[see](there)")),
    ("pythonic", "Hello [f(a=1)]", Read("Hello [f(a=1)]")),
    ("kimi", f"Hm.{KIMI}", Read("Hm.", calls=[CALL])),
    ("kimi", "<|tool_call_begin|>f<|tool_call_argument_begin|>{}<|tool_call_end|>", Read(calls=[("f", {})])),
    ("kimi", "<|tool_call_begin|>f:0<|tool_call_argument_begin|>oops<|tool_call_end|>", Read(failed=["<|tool_call_begin|>f:0<|tool_call_argument_begin|>oops<|tool_call_end|>"])),
    ("minimax", f"Hm.\n{MINIMAX}", Read("Hm.", calls=[CALL])),
    ("minimax", '<minimax:tool_call><invoke name="f"></invoke><invoke name="g"></invoke></minimax:tool_call>', Read(calls=[("f", {}), ("g", {})])),
    ("seed", f"Hm. {SEED}", Read("Hm.", calls=[CALL])),
    ("nemotron", f"Hm. {NEMOTRON}", Read("Hm.", calls=[CALL])),
    ("nemotron", '<TOOLCALL>{"name": "f", "arguments": {}}</TOOLCALL>', Read(calls=[("f", {})])),
    ("phi", PHI, Read(calls=[CALL])),
    ("phi", "<|tool_call|>[", Read(failed=["<|tool_call|>["])),
    ("minimax_m3", f"Hm.{MINIMAX_M3}", Read("Hm.", calls=[CALL])),
    (
        "minimax_m3",
        f'{M3}<invoke name="f">{M3}<a>{M3}<item>1{M3}</item>{M3}<item>{M3}<b>x{M3}</b>'
        f"{M3}</item>{M3}</a>{M3}<c>{M3}<d>true{M3}</d>{M3}</c>{M3}</invoke>ok",
        Read("ok", calls=[("f", {"a": [1, {"b": "x"}], "c": {"d": True}})]),
    ),
    ("minimax_m3", f'{M3}<invoke name="f">{M3}<a>1{M3}</b>{M3}</invoke>', Read(failed=[f'{M3}<invoke name="f">{M3}<a>1{M3}</b>{M3}</invoke>'])),
    ("deepseek_v32", f"Hm.\n\n{DSML}", Read("Hm.", calls=[CALL])),
    ("deepseek_v32", f'<｜DSML｜invoke name="look">\n{ARGUMENTS}\n</｜DSML｜invoke>', Read(calls=[CALL])),
    ("minicpm", f"Hm. {MINICPM}", Read("Hm.", calls=[CALL])),
    ("minicpm", '<function name="look"><param name="city"><![CDATA[a </param> b]]></param></function>', Read(calls=[("look", {"city": "a </param> b"})])),
    ("muse", f"Hm.\n{MUSE}", Read("Hm.", calls=[CALL])),
    ("longcat", f"Hm. {LONGCAT}", Read("Hm.", calls=[CALL])),
    ("kimi_k3", f"<|open|>response<|sep|>Hm.<|close|>response<|sep|>{KIMI_K3}<|close|>message<|sep|>", Read("Hm.", calls=[CALL])),
    ("kimi_k3", "Hm.<|close|>response<|sep|><|close|>mess", Read("Hm.")),
    ("cohere", COHERE, Read(calls=[CALL])),
    ("jamba", f" <tool_calls>[\n {NAMED}\n]</tool_calls>", Read(calls=[CALL])),
    ("internlm", f"Hm.<|action_start|> <|plugin|>\n{NAMED}<|action_end|>\n", Read("Hm.", calls=[CALL])),
    ("llama4", f"<|python_start|><|python_end|>{NAMED}", Read(calls=[CALL])),
    ("llama4", f"<|python_start|>{NAMED}<|python_end|>", Read(calls=[CALL])),
    ("llama4", "Hm.", Read("Hm.")),
    ("functionary", f"look\n{ARGUMENTS}", Read(calls=[CALL])),
    ("functionary", f">>>all\nHm.>>>look\n{ARGUMENTS}>>>f\n{{}}", Read("Hm.", calls=[CALL, ("f", {})])),
    ("functionary", "Hello >> you\nall", Read("Hello >> you\nall")),
    ("functionary", "look\n{oops", Read(failed=[">>>look\n{oops"])),
    ("functionary_v2", f"all\n<|content|>Hm.\n<|from|>assistant\n<|recipient|>look\n<|content|>{ARGUMENTS}", Read("Hm.", calls=[CALL])),
    ("functionary_v2", "Just text", Read("Just text")),
    ("harmony", "to=functions.look<|channel|>commentary json<|message|>" + ARGUMENTS, Read(calls=[CALL])),
    ("harmony", "<|start|>assistant to=functions.look<|channel|>commentary<|message|>" + ARGUMENTS, Read(calls=[CALL])),
    ("harmony", "<|channel|>analysis to=python code<|message|>1 + 1<|call|><|start|>assistant<|channel|>final<|message|>Hi", Read("Hi", "1 + 1")),
    ("harmony", "<|channel|>commentary to=all<|message|>Hi<|end|>", Read("Hi")),
    ("harmony", "to be", Read("to be")),
    ("function_tag", f"Hm. {FUNCTION}", Read("Hm.", calls=[CALL])),
    ("function_tag", "<function=f>{}</function>\n<function=g>{}</function>", Read(calls=[("f", {}), ("g", {})])),
    ("json", '{"name": "look", "arguments": ' + ARGUMENTS + "}", Read(calls=[CALL])),
    ("json", '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', Read(calls=[("f", {}), ("g", {})])),
    ("json", '{"answer": 42}', Read('{"answer": 42}')),
    ("json", "[1, 2]", Read("[1, 2]")),
    ("json", '{"name": "f", "arguments": {"a": 1', Read(calls=[("f", {"a": 1})])),
    ("json", '{"name": "f", "arguments": {"a"', Read(failed=['{"name": "f", "arguments": {"a"'])),
    ("olmo", "Hm.\n<function_calls>\nlook(city=\"Oslo\", days=3)\nf(a=null)\n</function_calls>", Read("Hm.", calls=[CALL, ("f", {"a": None})])),
    ("olmo", "<function_calls>look(city=\"</function_calls>\", days=3)</function_calls>.", Read(".", calls=[("look", {"city": "</function_calls>", "days": 3})])),
    ("olmo", "<function_calls>look at</function_calls>", Read(failed=["<function_calls>look at</function_calls>"])),
    ("apertus", f'Hm.<|tools_prefix|>[{{"look": {ARGUMENTS}}}, {{"f": {{}}}}]<|tools_suffix|>', Read("Hm.", calls=[CALL, ("f", {})])),
    ("apertus", '<|tools_prefix|>[{"f": {}, "g": {}}]<|tools_suffix|>', Read(failed=['<|tools_prefix|>[{"f": {}, "g": {}}]<|tools_suffix|>'])),
    ("solar", f"<|content|>Hm.<|end|><|begin|>assistant{SOLAR}<|calls|>", Read("Hm.", calls=[CALL])),
    ("solar", f"{SOLAR}<|tool_call:begin|>b<|tool_call:name|>f<|tool_call:args|>{{", Read(calls=[CALL], failed=["<|tool_call:begin|>b<|tool_call:name|>f<|tool_call:args|>{"])),
    ("plamo", f"Hm.{PLAMO}", Read("Hm.", calls=[CALL])),
    ("dots", f"Hm.\n{DOTS}", Read("Hm.", calls=[CALL])),
    ("gigachat_tags", f"Hm.\n\n{GIGACHAT}<|message_sep|>", Read("Hm.", calls=[CALL])),
    ("gigachat", f"Hm.<|message_sep|>\n\nfunction call<|role_sep|>\n{NAMED}<|message_sep|>", Read("Hm.", calls=[CALL])),
    ("granite_code", f"<function_call> {NAMED}", Read(calls=[CALL])),
    ("deepseek_v32", f"<｜DSML｜tool_calls>\n{DSML.partition(chr(10))[2].rpartition(chr(10))[0]}\n</｜DSML｜tool_calls>", Read(calls=[CALL])),
    # Calls that came out with a name of JSON, or without their arguments.
    ("glm", f'<tool_call>{{"name": "look", "arguments": {ARGUMENTS}}}</tool_call>', Read(calls=[CALL])),
    ("glm", f"<tool_call>look\n{ARGUMENTS}</tool_call>.", Read(".", calls=[CALL])),
    ("hermes", f'<tool_call>{{"name": "look", "args": {ARGUMENTS}}}</tool_call>', Read(calls=[CALL])),
    ("hermes", f'<tool_call>{{"name": "look", "input": {ARGUMENTS}}}</tool_call>', Read(calls=[CALL])),
    ("json", '{"name": "Bob", "input": {"a": 1}}', Read('{"name": "Bob", "input": {"a": 1}}')),
]  # fmt: skip
