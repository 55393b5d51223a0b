"""The grammar of tool calls in each family's own syntax, with arguments held to each tool's parameter schema.

It knows the families' tags; it neither parses output nor knows a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.schema import enforceable


def call_grammar(
    tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any], family: str, parallel: bool
) -> str | None:
    """See `grammar.grammar_for_tools`."""
    if tool_choice == "none" or not tools:
        return None
    if family != "hermes":
        raise ParameterError("tool_choice", f"calls of the family {family!r} cannot be enforced")
    functions = [tool["function"] for tool in tools]
    if isinstance(tool_choice, Mapping):
        functions = [one for one in functions if one["name"] == tool_choice["function"]["name"]]
    bodies = [
        {
            "type": "object",
            "properties": {
                "name": {"const": one["name"]},
                "arguments": enforceable(one.get("parameters", {"type": "object"}), "tools"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    lark = f'start: "<tool_call>\\n" body "\\n</tool_call>"\nbody: %json {json.dumps({"anyOf": bodies})}'
    return json.dumps({"grammars": [{"lark_grammar": lark}]})
