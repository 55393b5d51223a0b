"""Ollama's messages in the shape that templates know: calls and results by their ids."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import MAX_MESSAGES
from rvllm_local.server.api.ollama.schema import OllamaMessage, OllamaToolCall
from rvllm_local.server.http.problems import bad_request

Message = dict[str, Any]


def chat_messages(
    messages: Sequence[OllamaMessage], reading: Reading
) -> tuple[Message, ...]:
    """Checked messages. Raises `Problem`, or `ParameterError` that names the field."""
    if len(messages) > MAX_MESSAGES:
        raise bad_request(
            f"there are {len(messages)} messages; at most {MAX_MESSAGES} are taken",
            "messages",
        )
    history = _History(reading)
    for index, message in enumerate(messages):
        history.add(message, f"messages[{index}]")
    return tuple(history.rows)


class _History:
    """Messages as they are put together; results find the calls that they answer."""

    def __init__(self, reading: Reading) -> None:
        self.rows: list[Message] = []
        self._reading = reading
        # Calls that no result has answered: the id and the function's name.
        self._open: deque[tuple[str, str]] = deque()
        self._count = 0

    def add(self, message: OllamaMessage, where: str) -> None:
        row: Message = {"role": message.role, "content": self._text(message, where)}
        if message.thinking:
            row["reasoning_content"] = message.thinking
        if message.tool_calls:
            if message.role != "assistant":
                raise bad_request(
                    f"{where}: only an assistant's message has tool_calls",
                    f"{where}.tool_calls",
                )
            row["tool_calls"] = [self._call(call) for call in message.tool_calls]
        name = message.tool_name or message.name
        if message.role == "tool":
            row["tool_call_id"] = message.tool_call_id or self._answered(name)
        if name:
            row["name"] = name
        self.rows.append(row)

    def _text(self, message: OllamaMessage, where: str) -> str:
        """The content, with a text in the place of each picture."""
        texts = [message.content or ""]
        in_result = message.role == "tool"
        for index, _ in enumerate(message.images or ()):
            path = f"{where}.images[{index}]"
            texts.append(self._reading.replaced("image", path, in_result))
        return "\n".join(text for text in texts if text)

    def _call(self, call: OllamaToolCall) -> Message:
        call_id = call.id or f"call_{self._count}"
        self._count += 1
        name, arguments = call.function.name, call.function.arguments
        self._open.append((call_id, name))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    def _answered(self, name: str | None) -> str:
        """The id of the call that a result answers: by its name, else the oldest."""
        for call in self._open:
            if name is None or call[1] == name:
                self._open.remove(call)
                return call[0]
        return "call_unknown"
