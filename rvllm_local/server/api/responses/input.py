"""The input of a responses request as messages in the shape that templates know.

Calls and thoughts join the assistant's message that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rvllm_local.conversation.kinds import shown_kind
from rvllm_local.conversation.reading import Reading
from rvllm_local.server.api.common import Object, convert_part
from rvllm_local.server.api.responses.compaction import summary_message
from rvllm_local.server.api.responses.schema import InputItem, ItemPart
from rvllm_local.server.http.problems import bad_request

Messages = tuple[Mapping[str, Any], ...]
# Calls that another server ran itself. A lenient server leaves them out of a history;
# they hold nothing of what was said.
_HOSTED_CALLS = frozenset(
    (
        "web_search_call",
        "file_search_call",
        "computer_call",
        "computer_call_output",
        "image_generation_call",
        "code_interpreter_call",
        "tool_search_call",
        "tool_search_output",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
    )
)


def input_messages(given: str | Sequence[Object], reading: Reading) -> Messages:
    """The input as messages. Raises `Problem` that names the item."""
    if isinstance(given, str):
        return ({"role": "user", "content": given},)
    if not given:
        raise bad_request("input is empty; give text or at least one item", "input")
    history = _History(reading)
    for index, item in enumerate(given):
        history.add(item, f"input[{index}]")
    return tuple(history.messages)


def output_messages(output: Iterable[Mapping[str, Any]]) -> Messages:
    """The items of a response as messages, for the turn after it."""
    fields = frozenset(InputItem.__struct_fields__)
    rows = []
    for item in output:
        row = {name: value for name, value in item.items() if name in fields}
        rows.append(row)
    return input_messages(rows, Reading())


class _History:
    """Messages as they are put together, item by item."""

    def __init__(self, reading: Reading) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reading = reading
        self._thought = ""  # of the message that comes next

    def add(self, row: Object, where: str) -> None:
        kind = row.get("type") or "message"
        match kind:
            case "message":
                self._add_message(self._read(row, where), where)
            case "function_call" | "custom_tool_call":
                self._add_call(self._read(row, where), where)
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(self._read(row, where), where)
            case "reasoning":
                item = self._read(row, where)
                self._thought = self._text(item.content or item.summary or (), where)
                return
            case "compaction":
                item = self._read(row, where)
                message = summary_message(item.encrypted_content, where)
                self.messages.append(message)
            case _:
                self._leave_out(str(kind), where)
                return
        if self._thought and self.messages[-1]["role"] == "assistant":
            self.messages[-1]["reasoning_content"] = self._thought
        self._thought = ""

    def _read(self, row: Object, where: str) -> InputItem:
        if row.get("type") is None:
            row = {**row, "type": "message"}
        return convert_part(row, InputItem, where, self._reading)

    def _leave_out(self, kind: str, where: str) -> None:
        if kind in _HOSTED_CALLS and self._reading.is_lenient:
            self._reading.leave_out(where, kind)
            return
        raise bad_request(
            f"{where} is of type {shown_kind(kind)}, which is not supported here",
            where,
            "unsupported",
        )

    def _add_message(self, item: InputItem, where: str) -> None:
        if item.role is None or item.content is None:
            raise bad_request(f"{where}: a message needs role and content", where)
        text = self._text(item.content, f"{where}.content")
        self.messages.append({"role": item.role, "content": text})

    def _add_call(self, item: InputItem, where: str) -> None:
        arguments = item.arguments
        if item.type == "custom_tool_call" and item.input is not None:
            arguments = json.dumps({"input": item.input}, ensure_ascii=False)
        if not item.call_id or not item.name or arguments is None:
            raise bad_request(
                f"{where}: a function_call needs call_id, name and arguments", where
            )
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _add_output(self, item: InputItem, where: str) -> None:
        if not item.call_id or item.output is None:
            raise bad_request(
                f"{where}: a function_call_output needs call_id and output", where
            )
        text = self._text(item.output, f"{where}.output", in_result=True)
        self.messages.append(
            {"role": "tool", "tool_call_id": item.call_id, "content": text}
        )

    def _text(
        self, content: str | Sequence[ItemPart], where: str, in_result: bool = False
    ) -> str:
        if isinstance(content, str):
            return content
        texts = []
        for index, part in enumerate(content):
            if part.text is None and part.refusal is None:
                part_path = f"{where}[{index}]"
                text = self._reading.replaced(part.type, part_path, in_result)
                texts.append(text)
            else:
                texts.append(part.text or part.refusal or "")
        return "".join(texts)
