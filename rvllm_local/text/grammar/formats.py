"""Grammars for structured output and tool calls: what a request asks for, as a string that a compiler takes.

The string is JSON: llguidance grammars in which tags are numbered, and the thinking before them. Only
`GrammarCompiler` (text/grammar/matcher.py), which knows the tokenizer, turns it into tokens. It knows no engine and no API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.families import OutputStyle
from rvllm_local.text.grammar.json_schema import enforceable, enforced
from rvllm_local.text.grammar.regex import PatternError, portable
from rvllm_local.text.grammar.tool_calls import HARMONY_REASONING, call_grammar
from rvllm_local.text.tags import CHANNEL, MESSAGE

__all__ = [
    "grammar_for_format",
    "grammar_for_tools",
    "split_left_out",
    "unconstrained",
    "with_reasoning",
    "with_style",
]

MAX_CHOICES = 1000
MAX_GRAMMAR_CHARS = 1 << 20
_FIELDS = {
    "text": frozenset[str](),
    "json_object": frozenset({"schema"}),
    "json_schema": frozenset({"json_schema"}),
    "regex": frozenset({"regex"}),
    "choice": frozenset({"choices"}),
    "grammar": frozenset({"grammar"}),
    "lark": frozenset({"grammar"}),
}


def grammar_for_format(
    response_format: Mapping[str, Any], family: str | None = None
) -> str | None:
    """The grammar of a response format; None for `{"type": "text"}`. With `family` harmony, of its final message.

    Types: text, json_object (with a `schema`, as llama.cpp has it, or without), json_schema (`{"json_schema": {"name", "schema", "strict"}}`), regex
    (`{"regex": ...}`, for the whole output), choice (`{"choices": [...]}`), grammar or lark (`{"grammar": ...}`). Raises `ParameterError`
    that names what cannot be enforced. Regex, lark and sizes are judged when the grammar is compiled.
    """
    grammar = _answer_grammar(response_format)
    if grammar is None:
        return None
    if family == "harmony":
        return _final_message(grammar)
    left_out = grammar.pop("left_out", ())
    return json.dumps({"grammars": [grammar], "left_out": left_out})


def split_left_out(grammar: str | None) -> tuple[str | None, tuple[str, ...]]:
    """A grammar for the compiler, and the parts of schemas that it does not enforce."""
    if grammar is None or '"left_out"' not in grammar:
        return grammar, ()
    whole = json.loads(grammar)
    parts = tuple(whole.pop("left_out"))
    return json.dumps(whole), parts


def _answer_grammar(response_format: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        shown = (
            repr(kind)
            if kind is None or (isinstance(kind, str) and kind.isidentifier())
            else "..."
        )
        raise _error(f"type is {shown}; use one of {', '.join(_FIELDS)}")
    unknown = set(response_format) - _FIELDS[kind] - {"type"}
    if unknown:
        raise _error(
            f"{min(unknown)!r} does not belong to a response format of type {kind!r}"
        )
    return _format_grammar(kind, response_format)


def _format_grammar(
    kind: str, response_format: Mapping[str, Any]
) -> dict[str, Any] | None:
    match kind:
        case "text":
            return None
        case "json_object":
            schema = response_format.get("schema")
            if schema is None:
                return {"json_schema": enforceable({"type": "object"})}
            return _schema_grammar({"schema": schema})
        case "json_schema":
            return _schema_grammar(response_format.get("json_schema"))
        case "regex":
            return {"lark_grammar": f"start: {_regex(_text(response_format, 'regex'))}"}
        case "choice":
            return {
                "lark_grammar": "start: "
                + " | ".join(_choices(response_format.get("choices")))
            }
        case _:
            return {"lark_grammar": _text(response_format, "grammar")}


def _schema_grammar(field: Any) -> dict[str, Any]:
    """The grammar of a named schema; what is left out of it stands beside."""
    schema = _schema_of(field)
    enforcement = enforced(schema, lenient=field.get("strict") is not True)
    grammar: dict[str, Any] = {"json_schema": enforcement.schema}
    if enforcement.left_out:
        grammar["left_out"] = list(enforcement.left_out)
    return grammar


def _final_message(grammar: dict[str, Any]) -> str:
    """Harmony's answer in its channel, after an analysis."""
    left_out = grammar.pop("left_out", ())
    head = {"lark_grammar": 'start: <[[0]]> "final" <[[1]]> @answer'}
    whole = {
        "grammars": [head, {"name": "answer", **grammar}],
        "tags": [CHANNEL, MESSAGE],
        "reasoning": HARMONY_REASONING,
        "left_out": left_out,
    }
    return json.dumps(whole)


def grammar_for_tools(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    family: str,
    parallel: bool,
    response_format: Mapping[str, Any] | None = None,
) -> str | None:
    """The grammar of an output with calls of `tools`, in `family`'s own syntax; None if nothing is to be enforced.

    `tool_choice` is "none", "auto", "required" or `{"type": "function", "function": {"name": ...}}`. With "none", no call
    can begin, where calls have a tag. With "auto", text is free up to a call's tag, or follows `response_format` where no
    call is made. Without `parallel`, one call at most. Raises `ParameterError`.
    """
    answer = None if response_format is None else _answer_grammar(response_format)
    return call_grammar(tools, tool_choice, family, parallel, answer)


def unconstrained() -> str:
    """A grammar that any output follows, special tokens included: to give a thinking budget to a free request."""
    return json.dumps({"grammars": [{"lark_grammar": "start: <[*]>*"}]})


def with_reasoning(
    grammar: str,
    start_tag: str,
    end_tag: str,
    max_tokens: int | None,
    starts_inside: bool,
) -> str:
    """`grammar` after a thinking block, which may be left out unless the prompt `starts_inside` one.

    At most `max_tokens` tokens are thought, tags not counted; then the end tag is forced. Raises `ParameterError`.
    """
    if max_tokens is not None and max_tokens < 0:
        raise ParameterError(
            "reasoning_budget",
            f"the thinking budget is {max_tokens}; it must not be negative",
        )
    reasoning = {
        "start": start_tag,
        "end": end_tag,
        "max_tokens": max_tokens,
        "starts_inside": starts_inside,
    }
    return json.dumps({**json.loads(grammar), "reasoning": reasoning})


def with_style(
    grammar: str,
    style: OutputStyle,
    max_tokens: int | None = None,
    starts_inside: bool | None = None,
) -> str:
    """`with_reasoning` for a model's own tags; `grammar` as it is if the model does not think aloud."""
    inside = style.reasoning_starts_inside if starts_inside is None else starts_inside
    if style.tool_family == "harmony":
        start, end = str(HARMONY_REASONING["start"]), str(HARMONY_REASONING["end"])
        return with_reasoning(grammar, start, end, max_tokens, False)
    if style.reasoning_start is None or style.reasoning_end is None:
        return grammar
    return with_reasoning(
        grammar, style.reasoning_start, style.reasoning_end, max_tokens, inside
    )


def _schema_of(field: Any) -> Any:
    if not isinstance(field, Mapping):
        raise _error("json_schema must be an object with a name and a schema")
    unknown = set(field) - {"name", "schema", "strict", "description"}
    if unknown:
        raise _error(
            f"json_schema holds {min(map(str, unknown))!r}, which nobody knows"
        )
    if "schema" not in field:
        raise _error("json_schema lacks its schema")
    return field["schema"]


def _text(field: Mapping[str, Any], key: str) -> str:
    value = field.get(key)
    if not isinstance(value, str) or not value:
        raise _error(f"{key} must be text that is not empty")
    if len(value) > MAX_GRAMMAR_CHARS:
        raise _error(
            f"{key} has {len(value)} characters; at most {MAX_GRAMMAR_CHARS} are taken"
        )
    return value


def _regex(pattern: str) -> str:
    """A Lark terminal that matches what `pattern` matches as a whole."""
    try:
        whole = portable(pattern)
    except PatternError as error:
        raise _error(f"the regex cannot be enforced: {error}") from error
    return f"/{whole.removeprefix('^').removesuffix('$')}/"


def _choices(values: Any) -> list[str]:
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(value, str) and value for value in values)
    ):
        raise _error("choices must be a list of texts that are not empty")
    if len(values) > MAX_CHOICES:
        raise _error(
            f"there are {len(values)} choices; at most {MAX_CHOICES} are taken"
        )
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _error(message: str) -> ParameterError:
    return ParameterError("response_format", f"response_format: {message}")
