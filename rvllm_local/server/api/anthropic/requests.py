"""From Anthropic's requests to calls: blocks become messages in the shape that templates know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.server.api.anthropic.schema import (
    AnthropicTool,
    Block,
    CountRequest,
    Message,
    MessagesRequest,
)
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    checked_budget,
)
from rvllm_local.server.http.problems import bad_request, shown_kind
from rvllm_local.types import SamplingParams

_SKIPPED = ("thinking", "redacted_thinking")


def messages_call(request: MessagesRequest) -> ChatCall:
    """What a messages request asks for. Raises `Problem` or `ParameterError`."""
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if (value := getattr(request, name)) is not None
    }
    if request.temperature is not None and request.temperature > 1:
        raise bad_request(
            f"temperature must be from 0 to 1, not {request.temperature}", "temperature"
        )
    params = SamplingParams(
        max_tokens=request.max_tokens, stop=request.stop_sequences or (), **given
    )
    return count_call(request, params)


def count_call(request: CountRequest, params: SamplingParams) -> ChatCall:
    """The conversation of a request, with the sampling parameters of whoever asks."""
    choice = request.tool_choice
    return ChatCall(
        model=request.model,
        messages=tuple(_messages(request)),
        params=params,
        tools=tuple(
            _tool(tool, index) for index, tool in enumerate(request.tools or ())
        ),
        tool_choice=_tool_choice(request),
        parallel_tool_calls=choice is None
        or choice.disable_parallel_tool_use is not True,
        response_format=_format(request),
        reasoning_budget=_budget(request),
        continues=bool(request.messages) and request.messages[-1].role == "assistant",
    )


def _messages(request: CountRequest) -> Iterable[Mapping[str, Any]]:
    if not request.messages:
        raise bad_request("messages is empty; give at least one message", "messages")
    if request.system:
        yield {"role": "system", "content": _text(request.system, "system")}
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if message.role == "assistant":
            yield _assistant(message, where)
        else:
            yield from _user(message, where)


def _user(message: Message, where: str) -> Iterable[Mapping[str, Any]]:
    """Results of tools come first, each as a message of its own; then what the user wrote."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts = [block for block in message.content if block.type != "tool_result"]
    for block in message.content:
        if block.type == "tool_result":
            if not block.tool_use_id:
                raise bad_request(
                    f"{where}: a tool_result needs its tool_use_id", where
                )
            content = _text(block.content or "", where)
            content = f"Error: {content}" if block.is_error else content
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": content,
            }
    if texts or not message.content:
        yield {"role": message.role, "content": _text(texts, where)}


def _assistant(message: Message, where: str) -> Mapping[str, Any]:
    blocks = (
        message.content
        if isinstance(message.content, list)
        else [Block(type="text", text=message.content)]
    )
    found: dict[str, Any] = {"role": "assistant"}
    found["content"] = _text(
        [block for block in blocks if block.type not in ("tool_use", *_SKIPPED)], where
    )
    if thinking := "".join(
        block.thinking or "" for block in blocks if block.type == "thinking"
    ):
        found["reasoning_content"] = thinking
    if calls := [_call(block, where) for block in blocks if block.type == "tool_use"]:
        found["tool_calls"] = calls
    return found


def _call(block: Block, where: str) -> dict[str, Any]:
    if not block.id or not block.name or block.input is None:
        raise bad_request(f"{where}: a tool_use needs id, name and input", where)
    function = {
        "name": block.name,
        "arguments": json.dumps(block.input, ensure_ascii=False),
    }
    return {"id": block.id, "type": "function", "function": function}


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.type != "text" or block.text is None:
            shown = shown_kind(block.type)
            raise bad_request(
                f"{where}: block {index} is of type {shown}; this server reads text only",
                where,
            )
    return "\n".join(block.text or "" for block in content)


def _tool(tool: AnthropicTool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        raise bad_request(
            f"tools[{index}] is a server tool; only tools with an input_schema can be called here",
            "tools",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(request: CountRequest) -> str | dict[str, Any]:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if not request.tools and choice.type != "none":
        raise bad_request("tool_choice is given without tools", "tool_choice")
    if (choice.type == "tool") != (choice.name is not None):
        raise bad_request(
            "tool_choice has a name if its type is tool, and only then", "tool_choice"
        )
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"any": "required"}.get(choice.type, choice.type)


def _format(request: CountRequest) -> Mapping[str, Any] | None:
    if request.output_config is None or request.output_config.format is None:
        return None
    schema = {"name": "answer", "schema": request.output_config.format.schema}
    return {"type": "json_schema", "json_schema": schema}


def _budget(request: CountRequest) -> int | None:
    thinking = request.thinking
    if thinking is not None and (thinking.type == "enabled") != (
        thinking.budget_tokens is not None
    ):
        raise bad_request(
            "thinking has budget_tokens if its type is enabled, and only then",
            "thinking",
        )
    if thinking is not None and thinking.type == "disabled":
        return 0
    if thinking is not None and thinking.budget_tokens is not None:
        return checked_budget(thinking.budget_tokens, "thinking.budget_tokens", 1)
    effort = request.output_config.effort if request.output_config is not None else None
    return None if effort is None else EFFORT_TOKENS.get(effort)
