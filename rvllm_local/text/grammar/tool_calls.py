"""The grammar of an output with tool calls, held to each tool's parameter schema.

It puts together what the families' syntaxes write; it reads no output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text import tags
from rvllm_local.text.grammar.call_parts import CallSyntax
from rvllm_local.text.grammar.call_syntax import SYNTAXES
from rvllm_local.text.grammar.called_tools import callable_tools, read_tools
from rvllm_local.text.grammar.lark import Lark

# The analysis of a harmony model, in the form that the compiler takes.
HARMONY_REASONING = {
    "start": f"{tags.CHANNEL}analysis{tags.MESSAGE}",
    "end": f"{tags.END_MESSAGE}{tags.START}assistant",
    "max_tokens": None,
    "starts_inside": False,
}


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any],
    family: str,
    parallel: bool,
    answer: Mapping[str, Any] | None = None,
) -> str | None:
    """See `grammar.grammar_for_tools`; `answer` is the grammar of what is said instead of a call."""
    read = read_tools(tools)
    called = callable_tools(read, tool_choice)
    if family not in SYNTAXES:
        raise ParameterError(
            "tool_choice",
            f"calls of the family {family!r} are unknown and cannot be enforced",
        )
    syntax = SYNTAXES[family]
    if tool_choice == "none":
        return _without_calls(family, syntax.trigger) if read else None
    is_free = tool_choice == "auto"
    answer = answer if is_free else None
    if not called or (is_free and syntax.trigger is None and answer is None):
        return None
    lark = Lark([part for tool in called for part in tool.left_out])
    calls = [lark.rule(syntax.call(lark, tool)) for tool in called]
    call = lark.rule(" | ".join(calls))
    if family == "harmony":
        return _harmony_grammar(lark, call, is_free, answer)
    may_repeat = parallel and not isinstance(tool_choice, Mapping)
    trigger = "" if syntax.trigger is None else lark.tag(syntax.trigger)
    body = lark.rule(_calls(lark, syntax, call, trigger, may_repeat))
    if answer is not None:
        return lark.grammar(f"{trigger} {body} | @answer", answer)
    if not is_free:
        return lark.grammar(f"{trigger} {body}")
    lark.read_free_text(trigger)
    return lark.grammar(f"free_text | free_text_to_tag {body}")


def _calls(
    lark: Lark, syntax: CallSyntax, call: str, trigger: str, may_repeat: bool
) -> str:
    """One call after the trigger, or several."""
    first = lark.text(syntax.first)
    parts = [first, call]
    if may_repeat and syntax.can_repeat:
        again = f"{trigger} {first}" if syntax.repeats else ""
        parts.append(f"({lark.text(syntax.between)} {again} {call})*")
    parts.append(lark.text(syntax.last))
    return " ".join(parts)


def _without_calls(family: str, trigger: str | None) -> str | None:
    """The grammar of an answer in which no call can begin; None where a call looks like text."""
    lark = Lark()
    if family == "harmony":
        return _harmony_grammar(lark, None, True, None)
    if trigger is None:
        return None
    lark.read_free_text(lark.tag(trigger))
    return lark.grammar("free_text")


def _harmony_grammar(
    lark: Lark, call: str | None, auto: bool, answer: Mapping[str, Any] | None
) -> str:
    """Messages have channels here: analysis may come first, then a call, or else the final answer."""
    channel, message = lark.tag(tags.CHANNEL), lark.tag(tags.MESSAGE)
    said = lark.rule("/(?s:.*)/") if answer is None else "@answer"
    ways = [] if call is None else [f"{channel} {call}"]
    ways += [f'{channel} "final" {message} {said}'] if auto else []
    parts = json.loads(lark.grammar(" | ".join(ways), answer))
    return json.dumps({**parts, "reasoning": HARMONY_REASONING})
