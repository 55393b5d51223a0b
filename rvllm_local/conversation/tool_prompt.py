"""Explains tools to a model whose chat template knows none, in the Hermes form that its output is then read in.

Calls and results of earlier turns become plain messages in the same form. The form is
that of NousResearch's Hermes function calling: a list of signatures in the system
message, `<tool_call>` and `<tool_response>` around JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags

_INTRODUCTION = """\
You may call the functions below to help with the user's request. Their signatures, as JSON:
{signatures}

To call one, write its name and arguments as JSON between tags, for example:
{opening}
{{"name": "the function", "arguments": {{"key": "value"}}}}
{closing}"""


def explain_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The conversation without tool calls or tool roles.

    With `tools`, its system message explains them.
    """
    plain = plain_turns(messages)
    if not tools:
        return plain
    signatures = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    opening, closing = tags.HERMES
    text = _INTRODUCTION.format(
        signatures="\n".join(signatures), opening=opening, closing=closing
    )
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def plain_turns(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with calls and results as text.

    Results that follow one another become one message: many templates want the roles to
    alternate.
    """
    plain: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        row = _plain(message)
        is_result = message["role"] == "tool"
        if is_result and index and messages[index - 1]["role"] == "tool":
            before = plain.pop()["content"]
            row = {**row, "content": f"{before}\n{row['content']}"}
        plain.append(row)
    return plain


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message['content']}\n</tool_response>",
        }
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [
        f"{tags.HERMES[0]}\n{_call(call['function'])}\n{tags.HERMES[1]}"
        for call in calls
    ]
    content = "\n".join(part for part in (message["content"], *written) if part)
    return {"role": message["role"], "content": content}


def _call(function: Mapping[str, Any]) -> str:
    return json.dumps(
        {"name": function["name"], "arguments": function["arguments"]},
        ensure_ascii=False,
    )
