"""Anthropic's blocks as messages in the shape that templates know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rvllm_local.conversation.reading import Reading
from rvllm_local.server.api.anthropic.schema import Block, CountRequest, Message
from rvllm_local.server.http.problems import bad_request

_THOUGHTS = ("thinking", "redacted_thinking")
# An agent's first system block, for its maker's bills: a code in it changes with every
# session, so that no session would find another's prefix.
_BILLING = "x-anthropic-billing-header:"


def input_messages(
    request: CountRequest, reading: Reading
) -> tuple[Mapping[str, Any], ...]:
    """The system prompt and the turns. Raises `Problem` that names the place."""
    if not request.messages:
        raise bad_request("messages is empty; give at least one message", "messages")
    messages = list(_system(request.system, reading))
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if message.role == "assistant":
            messages.append(_assistant(message, where, reading))
        else:
            messages.extend(_user(message, where, reading))
    return tuple(messages)


def _system(
    system: str | list[Block] | None, reading: Reading
) -> Iterator[Mapping[str, Any]]:
    if isinstance(system, list):
        blocks = list(system)
        if blocks and (blocks[0].text or "").startswith(_BILLING):
            reading.left_out.append("system[0] (billing header)")
            del blocks[0]
        system = _text(blocks, "system", reading)
    if system:
        yield {"role": "system", "content": system}


def _user(
    message: Message, where: str, reading: Reading
) -> Iterator[Mapping[str, Any]]:
    """Results of tools come first, each a message; then what the user wrote."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    others = []
    for index, block in enumerate(message.content):
        if block.type == "tool_result":
            yield _result(block, f"{where}.content[{index}]", reading)
        else:
            others.append(block)
    if others or not message.content:
        text = _text(others, f"{where}.content", reading)
        yield {"role": message.role, "content": text}


def _result(block: Block, where: str, reading: Reading) -> Mapping[str, Any]:
    if not block.tool_use_id:
        raise bad_request(f"{where}: a tool_result needs its tool_use_id", where)
    text = _text(block.content or "", f"{where}.content", reading, in_result=True)
    if block.is_error:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def _assistant(message: Message, where: str, reading: Reading) -> Mapping[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts, thoughts, calls = [], [], []
    for block in message.content:
        if block.type == "tool_use":
            calls.append(_call(block, where))
        elif block.type in _THOUGHTS:
            thoughts.append(block.thinking or "")
        else:
            texts.append(block)
    fields: dict[str, Any] = {"role": "assistant"}
    fields["content"] = _text(texts, f"{where}.content", reading)
    if thought := "".join(thoughts):
        fields["reasoning_content"] = thought
    if calls:
        fields["tool_calls"] = calls
    return fields


def _call(block: Block, where: str) -> dict[str, Any]:
    if not block.id or not block.name or block.input is None:
        raise bad_request(f"{where}: a tool_use needs id, name and input", where)
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}


def _text(
    content: str | Iterable[Block],
    where: str,
    reading: Reading,
    in_result: bool = False,
) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, block in enumerate(content):
        if block.type == "text" and block.text is not None:
            texts.append(block.text)
        else:
            block_path = f"{where}[{index}]"
            texts.append(reading.replaced(block.type, block_path, in_result))
    return "\n".join(texts)
