"""The grammar of tool calls in each family's own syntax, with arguments held to each tool's parameter schema.

It knows the families' tags; it neither parses output nor knows a tokenizer.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text import tags
from rvllm_local.text.grammar.json_schema import enforceable

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_KEY = re.compile(r"[^<>\n\x00-\x1f\x7f]{1,64}")


# The analysis of a harmony model, in the form that the compiler takes.
HARMONY_REASONING = {
    "start": f"{tags.CHANNEL}analysis{tags.MESSAGE}",
    "end": f"{tags.END_MESSAGE}{tags.START}assistant",
    "max_tokens": None,
    "starts_inside": False,
}
_STRING_LIMITS = frozenset({"minLength", "maxLength", "pattern", "format"})


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called, as a request names it. `schema` is its parameters', fit to be compiled."""

    name: str
    schema: Mapping[str, Any]
    strict: bool


class _Lark:
    """A Lark grammar in the making; a tag is written as its number, since only a tokenizer knows its token."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tags: list[str] = []

    def tag(self, text: str) -> str:
        if text not in self.tags:
            self.tags.append(text)
        return f"<[[{self.tags.index(text)}]]>"

    def rule(self, body: str) -> str:
        """A new rule with this body; returns its name."""
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def until(self, end: str) -> str:
        """A new rule: any text, and the tag `end` after it."""
        name = f"r{len(self.lines)}"
        self.lines.append(self.tag(end).replace("[[", f"[[until {name} "))
        return name

    def read_free_text(self, tag: str) -> None:
        """The rules free_text, in which `tag` does not come, and free_text_to_tag, which ends with it."""
        self.lines.append(tag.replace("[[", "[[free "))

    def json(self, schema: Mapping[str, Any]) -> str:
        return self.rule(f"%json {json.dumps(schema)}")

    def grammar(self, start: str, answer: Mapping[str, Any] | None = None) -> str:
        """The whole; `answer` is a grammar that `start` refers to as @answer."""
        grammars = [{"lark_grammar": "\n".join([f"start: {start}", *self.lines])}]
        if answer is not None:
            grammars.append({"name": "answer", **answer})
        return json.dumps(
            {"grammars": grammars, "tags": self.tags, "parameter": "tools"}
        )


@dataclass(frozen=True, slots=True)
class _Family:
    """How one family writes calls. `trigger` is the tag that begins them, None if a call looks like text.

    `call` gives the body of one call; `first` comes before the first call after the trigger, `between` two calls,
    `last` after all; where `repeats`, every call begins with the trigger again.
    """

    call: Callable[[_Lark, Tool], str]
    trigger: str | None
    first: str = ""
    between: str = ""
    last: tuple[str, ...] = ()
    repeats: bool = True
    can_repeat: bool = True


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    family: str,
    parallel: bool,
    answer: Mapping[str, Any] | None = None,
) -> str | None:
    """See `grammar.grammar_for_tools`; `answer` is the grammar of what is said instead of a call."""
    read = _read_tools(tools)
    chosen = _chosen(read, tool_choice)
    if family not in _FAMILIES:
        raise ParameterError(
            "tool_choice",
            f"calls of the family {family!r} are unknown and cannot be enforced",
        )
    style = _FAMILIES[family]
    if tool_choice == "none":
        return _without_calls(family, style.trigger) if read else None
    answer = answer if tool_choice == "auto" else None
    if not chosen or (
        tool_choice == "auto" and style.trigger is None and answer is None
    ):
        return None
    lark = _Lark()
    call = lark.rule(" | ".join(lark.rule(style.call(lark, tool)) for tool in chosen))
    if family == "harmony":
        return _harmony_grammar(lark, call, tool_choice == "auto", answer)
    trigger = "" if style.trigger is None else lark.tag(style.trigger)
    calls = [_text(style.first), call]
    if parallel and style.can_repeat and not isinstance(tool_choice, Mapping):
        again = f"{trigger} {_text(style.first)}" if style.repeats else ""
        calls.append(f"({_text(style.between)} {again} {call})*")
    calls.extend(
        lark.tag(part) if part in tags.CONTROL_TAGS else _text(part)
        for part in style.last
    )
    body = lark.rule(" ".join(calls))
    if answer is not None:
        return lark.grammar(f"{trigger} {body} | @answer", answer)
    if tool_choice != "auto":
        return lark.grammar(f"{trigger} {body}")
    lark.read_free_text(trigger)
    return lark.grammar(f"free_text | free_text_to_tag {body}")


def _without_calls(family: str, trigger: str | None) -> str | None:
    """The grammar of an answer in which no call can begin; None where a call looks like text."""
    lark = _Lark()
    if family == "harmony":
        return _harmony_grammar(lark, None, True, None)
    if trigger is None:
        return None
    lark.read_free_text(lark.tag(trigger))
    return lark.grammar("free_text")


def _harmony_grammar(
    lark: _Lark, call: str | None, auto: bool, answer: Mapping[str, Any] | None
) -> str:
    """Messages have channels here: analysis may come first, then a call, or else the final answer."""
    channel, message = lark.tag(tags.CHANNEL), lark.tag(tags.MESSAGE)
    said = lark.rule("/(?s:.*)/") if answer is None else "@answer"
    ways = [] if call is None else [f"{channel} {call}"]
    ways += [f'{channel} "final" {message} {said}'] if auto else []
    parts = json.loads(lark.grammar(" | ".join(ways), answer))
    return json.dumps({**parts, "reasoning": HARMONY_REASONING})


def _read_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    if len(tools) > MAX_TOOLS:
        raise ParameterError(
            "tools", f"there are {len(tools)} tools; at most {MAX_TOOLS} are taken"
        )
    read: list[Tool] = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(name, str)
            or not _NAME.fullmatch(name)
        ):
            raise ParameterError(
                "tools",
                f"tool {index} must be a function with a name of 1 to 128 letters, digits, '_', '.' or '-'",
            )
        if any(name == other.name for other in read):
            raise ParameterError("tools", f"two tools have the name {name!r}")
        strict = function.get("strict") is True
        read.append(
            Tool(
                name,
                _arguments_schema(function.get("parameters"), name, strict),
                strict,
            )
        )
    return read


def _arguments_schema(parameters: Any, name: str, strict: bool) -> dict[str, Any]:
    """The schema of a tool's arguments. What cannot be enforced is refused if the tool is `strict`, else left out."""
    if parameters is None or parameters == {}:
        return enforceable({"type": "object"}, "tools")
    try:
        if (
            isinstance(parameters, Mapping)
            and parameters.get("type", "object") != "object"
        ):
            raise ParameterError(
                "tools", "the schema of parameters must be of type object"
            )
        schema = enforceable(parameters, "tools", lenient=not strict)
    except ParameterError as error:
        if strict:
            raise ParameterError("tools", f"tool {name!r}: {error}") from error
        schema = enforceable({}, "tools")
    return {**schema, "type": "object"}


def _chosen(tools: list[Tool], choice: str | Mapping[str, Any]) -> list[Tool]:
    if choice == "none" or (choice == "auto" and not tools):
        return []
    if choice in ("auto", "required"):
        if not tools:
            raise ParameterError(
                "tool_choice", "tool_choice is 'required', but there are no tools"
            )
        return tools
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ParameterError(
            "tool_choice",
            'tool_choice must be "none", "auto", "required" or name a function',
        )
    found = [tool for tool in tools if tool.name == name]
    if not found:
        raise ParameterError(
            "tool_choice",
            f"tool_choice names {name[:64]!r}, which is not among the tools",
        )
    return found


def _text(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False) if literal else ""


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


# One call in each syntax.


def _object_call(key: str) -> Callable[[_Lark, Tool], str]:
    """`{"name": ..., KEY: {...}}`"""

    def call(lark: _Lark, tool: Tool) -> str:
        head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
        return f"{_text(head)} {lark.json(tool.schema)} {_text('}')}"

    return call


def _hermes_call(lark: _Lark, tool: Tool) -> str:
    return f"{_object_call('arguments')(lark, tool)} {_text(chr(10))} {lark.tag(tags.HERMES[1])}"


def _mistral_args_call(lark: _Lark, tool: Tool) -> str:
    return f"{_text(tool.name)} {lark.tag(tags.MISTRAL_ARGS)} {lark.json(tool.schema)}"


def _deepseek_v3_call(lark: _Lark, tool: Tool) -> str:
    begin, end = (lark.tag(tag) for tag in tags.DEEPSEEK_CALL)
    head, foot = _text(f"{tool.name}\n```json\n"), _text("\n```")
    return f'{begin} "function" {lark.tag(tags.DEEPSEEK_SEP)} {head} {lark.json(tool.schema)} {foot} {end}'


def _deepseek_v31_call(lark: _Lark, tool: Tool) -> str:
    begin, end = (lark.tag(tag) for tag in tags.DEEPSEEK_CALL)
    return f"{begin} {_text(tool.name)} {lark.tag(tags.DEEPSEEK_SEP)} {lark.json(tool.schema)} {end}"


def _harmony_call(lark: _Lark, tool: Tool) -> str:
    head = f"{_text(f'commentary to=functions.{tool.name} ')} {lark.tag(tags.CONSTRAIN)} {_text('json')}"
    return f"{head} {lark.tag(tags.MESSAGE)} {lark.json(tool.schema)} {lark.tag(tags.CALL)}"


def _gemma_call(lark: _Lark, tool: Tool) -> str:
    """Python, or JSON where a name is none in Python."""
    if not all(
        map(_is_name, (*tool.name.split("."), *tool.schema.get("properties", ())))
    ):
        return f"{_object_call('parameters')(lark, tool)} {_text(chr(10) + '```')}"
    parts = _arguments_in_order(
        lark, tool, lambda key: f"{key}=", _json_value, "", ", "
    )
    return f"{_text(tool.name + '(')} {parts} {_text(')' + chr(10) + '```')}"


def _qwen3_coder_call(lark: _Lark, tool: Tool) -> str:
    foot = "\n</parameter>\n"
    parts = _arguments_in_order(
        lark, tool, lambda key: f"<parameter={key}>\n", _text_value, foot, ""
    )
    head, end = _text(f"\n<function={tool.name}>\n"), _text("</function>\n")
    return f"{head} {parts} {end} {lark.tag(tags.HERMES[1])}"


def _glm_call(lark: _Lark, tool: Tool) -> str:
    key, value = tags.GLM_KEY, tags.GLM_VALUE

    def head(name: str) -> str:
        return f"{key[0]}{name}{key[1]}\n{value[0]}"

    parts = _arguments_in_order(lark, tool, head, _text_value, f"{value[1]}\n", "")
    return f"{_text(tool.name + chr(10))} {parts} {lark.tag(tags.HERMES[1])}"


def _arguments_in_order(
    lark: _Lark,
    tool: Tool,
    head: Callable[[str], str],
    value: Callable[[_Lark, Mapping[str, Any], str], str],
    foot: str,
    separator: str,
) -> str:
    """Each listed property once, in order; those that are not required may be left out."""
    schema = tool.schema
    required = schema.get("required", ())
    properties = dict(schema.get("properties", {}))
    plain = set(schema) <= {
        "x-guidance",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "$defs",
        "definitions",
    }
    fits = plain and set(required) <= set(properties) and all(map(_fits, properties))
    if not fits:
        if tool.strict:
            raise ParameterError(
                "tools",
                f"tool {tool.name!r}: only listed properties can be enforced in this syntax",
            )
        properties, required = (
            {key: one for key, one in properties.items() if _KEY.fullmatch(key)},
            (),
        )
    shared = {
        key: schema[key]
        for key in ("x-guidance", "$defs", "definitions")
        if key in schema
    }
    ordered = (
        sorted(properties, key=lambda key: key not in required)
        if separator
        else list(properties)
    )
    parts = []
    for index, key in enumerate(ordered):
        inner = properties[key] if isinstance(properties[key], Mapping) else {}
        if (
            tool.strict
            and foot
            and inner.get("type") == "string"
            and set(inner) & _STRING_LIMITS
        ):
            raise ParameterError(
                "tools",
                f"tool {tool.name!r}: limits of the string {key!r} cannot be enforced",
            )
        one = [*_pieces(lark, head(key)), value(lark, {**inner, **shared}, foot)]
        if separator and index and key in required:
            one.insert(0, _text(separator))
        parts.append(
            " ".join(one)
            if key in required
            else f"({' '.join(_separated(one, separator, index))})?"
        )
    return " ".join(parts)


def _fits(key: str) -> bool:
    """True for a key that its tag holds and its reader gives back."""
    return _KEY.fullmatch(key) is not None and key == key.strip()


def _separated(one: list[str], separator: str, index: int) -> list[str]:
    return [_text(separator), *one] if separator and index else one


def _pieces(lark: _Lark, text: str) -> list[str]:
    """Text with tags in it: each tag apart, as a vocabulary may hold it as one token."""
    found = re.split(
        "(" + "|".join(map(re.escape, sorted(tags.CONTROL_TAGS))) + ")", text
    )
    return [
        lark.tag(part) if part in tags.CONTROL_TAGS else _text(part)
        for part in found
        if part
    ]


def _json_value(lark: _Lark, schema: Mapping[str, Any], foot: str) -> str:
    return f"{lark.json(schema)} {_text(foot)}"


def _text_value(lark: _Lark, schema: Mapping[str, Any], foot: str) -> str:
    """A value up to `foot`: strings as they are, all else as JSON."""
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices and all(isinstance(choice, str) for choice in choices):
        literals = " | ".join(
            json.dumps(choice, ensure_ascii=False) for choice in choices
        )
        return f"({literals}) {' '.join(_pieces(lark, foot))}"
    if schema.get("type") != "string":
        return f"{lark.json(schema)} {' '.join(_pieces(lark, foot))}"
    end = foot.rstrip("\n")
    return f"{lark.until(end)} {_text(foot[len(end) :])}"


_FAMILIES = {
    "hermes": _Family(_hermes_call, tags.HERMES[0], first="\n", between="\n"),
    "qwen3_coder": _Family(_qwen3_coder_call, tags.HERMES[0], between="\n"),
    "glm": _Family(_glm_call, tags.HERMES[0], between="\n"),
    "llama3": _Family(_object_call("parameters"), None, can_repeat=False),
    "mistral": _Family(
        _object_call("arguments"),
        tags.MISTRAL_CALLS,
        first="[",
        between=", ",
        last=("]",),
        repeats=False,
    ),
    "mistral_args": _Family(_mistral_args_call, tags.MISTRAL_CALLS),
    "gemma": _Family(_gemma_call, tags.GEMMA[0], first="\n", can_repeat=False),
    "deepseek": _Family(
        _deepseek_v3_call,
        tags.DEEPSEEK_CALLS[0],
        between="\n",
        last=(tags.DEEPSEEK_CALLS[1],),
        repeats=False,
    ),
    "deepseek_v31": _Family(
        _deepseek_v31_call,
        tags.DEEPSEEK_CALLS[0],
        last=(tags.DEEPSEEK_CALLS[1],),
        repeats=False,
    ),
    "harmony": _Family(_harmony_call, tags.CHANNEL, can_repeat=False),
    "json": _Family(_object_call("arguments"), None, can_repeat=False),
}
