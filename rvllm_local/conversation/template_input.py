"""Messages as chat templates expect them: texts for contents, objects for arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.conversation.calls import Message
from rvllm_local.text.call_form import CallForm

_MAX_DEPTH = 100  # of arguments that templates see as objects


def template_messages(messages: Sequence[Message], template: str) -> list[Message]:
    """The messages in the form that `template`, a chat template's source, can read."""
    knows_developer = "developer" in template
    rows: list[Message] = []
    for message in messages:
        row = {**message, "content": message.get("content") or ""}
        if row["role"] == "developer" and not knows_developer:
            row["role"] = "system"
        if "reasoning_content" in row:
            row.setdefault("thinking", row["reasoning_content"])  # harmony's name
        calls = row.pop("tool_calls", None)
        if calls:  # templates take an empty list for a call
            row["tool_calls"] = _calls(calls)
        rows.append(row)
    return rows


def in_call_form(messages: Sequence[Message], form: CallForm) -> list[Message]:
    """The messages with their calls in the form that the template shows.

    Where it shows no content beside calls, the content is a message before them.
    """
    rows: list[Message] = []
    for message in messages:
        if not message.get("tool_calls"):
            rows.append(message)
            continue
        row = dict(message)
        if form.content_as_none:
            if row["content"]:
                rows.append({"role": row["role"], "content": row["content"]})
            row["content"] = None
        if form.arguments_as_text:
            row["tool_calls"] = [_with_text(call) for call in row["tool_calls"]]
        rows.append(row)
    return rows


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for call in calls:
        function = call["function"]
        arguments = _arguments(function["arguments"] or "{}")
        rows.append({**call, "function": {**function, "arguments": arguments}})
    return rows


def _arguments(text: str) -> Any:
    """Arguments as an object; as the text that it was where it is no object.

    A model wrote the text, so that it may be anything. Null stands for no arguments.
    """
    from rvllm_local.text.json_shape import shape_of  # loads numpy

    if shape_of(text.encode(errors="replace")).depth > _MAX_DEPTH:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if value is None:
        return {}
    return value if isinstance(value, dict) else text
