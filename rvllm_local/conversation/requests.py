"""From fields to a `ChatCall`: what the roles may hold, and which options a template gets.

The server's dialects and `LLM.chat` both come through here, so that one refusal has one
wording. Every function raises `ParameterError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.field_errors import parameter_error
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.schema import (
    ChatArguments,
    ChatMessage,
    NamedTool,
    Tool,
    ToolChoice,
)
from rvllm_local.errors import ParameterError
from rvllm_local.param_values import MAX_INTEGER
from rvllm_local.types import SamplingParams

MAX_MESSAGES = 10_000
MAX_DEPTH = 100  # of the arguments from Python; a server's bodies are weighed before
_SIMPLE = (str, int, float, bool, type(None))
# Names that are set for every template, and arguments of the code that renders it.
_RESERVED = frozenset(
    (
        "messages",
        "tools",
        "bos_token",
        "eos_token",
        "add_generation_prompt",
        "template",
        "chat_template",
        "self",
        "continues",
    )
)


def read_arguments(
    model: str, params: SamplingParams, arguments: Mapping[str, Any]
) -> ChatCall:
    """The call that the arguments of `LLM.chat` describe."""
    for name, value in arguments.items():
        _check_depth(name, value)
    try:
        fields = msgspec.convert(arguments, ChatArguments, strict=True)
    except msgspec.ValidationError as error:
        raise parameter_error(error, ChatArguments) from None
    return ChatCall(
        model=model,
        messages=read_messages(fields.messages, Reading()),
        params=params,
        tools=read_tools(fields.tools),
        tool_choice=read_tool_choice(fields.tool_choice, fields.tools),
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        response_format=fields.response_format,
        reasoning_budget=read_budget(fields.reasoning_budget, "reasoning_budget"),
        template_options=read_template_options(fields.chat_template_kwargs),
        continues=fields.continue_final_message is True or ends_open(fields.messages),
    )


def _check_depth(name: str, value: Any) -> None:
    """Refuse what nests deeper than a server's body may: later steps recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                inner.extend(item)
        if not inner:
            return
        level = inner
    raise ParameterError(name, f"{name} is nested more than {MAX_DEPTH} deep")


def read_messages(
    messages: Sequence[ChatMessage], reading: Reading
) -> tuple[dict[str, Any], ...]:
    """Checked messages, each content as plain text."""
    if not messages:
        raise ParameterError("messages", "messages is empty; give at least one message")
    if len(messages) > MAX_MESSAGES:
        raise ParameterError(
            "messages",
            f"there are {len(messages)} messages; at most {MAX_MESSAGES} are taken",
        )
    rows = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_fields(message, where)
        if index + 1 < len(messages) and ends_open([message]):
            raise ParameterError(
                f"{where}.prefix", f"{where}: only the last message can be a prefix"
            )
        rows.append(_message(message, where, reading))
    return tuple(rows)


def _check_fields(message: ChatMessage, where: str) -> None:
    """Refuse fields that do not belong to the message's role, and missing ones."""
    role = message.role
    if role == "function":
        raise ParameterError(
            f"{where}.role",
            f"{where}: the role function is no longer supported; use tool",
        )
    if message.tool_calls and role != "assistant":
        raise ParameterError(
            f"{where}.tool_calls",
            f"{where}: only an assistant's message has tool_calls",
        )
    if role == "tool" and not message.tool_call_id:
        raise ParameterError(
            f"{where}.tool_call_id", f"{where}: a tool message needs its tool_call_id"
        )
    if message.content is None and role != "assistant":
        raise ParameterError(
            f"{where}.content", f"{where}: a {role} message needs content"
        )


def _message(message: ChatMessage, where: str, reading: Reading) -> dict[str, Any]:
    row: dict[str, Any] = {
        "role": message.role,
        "content": _content(message, f"{where}.content", reading),
    }
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            row[name] = value
    thought = _thought(message)
    if thought:
        row["reasoning_content"] = thought
    if message.tool_calls:
        calls = [msgspec.to_builtins(call) for call in message.tool_calls]
        row["tool_calls"] = [{**call, "type": "function"} for call in calls]
    return row


def _thought(message: ChatMessage) -> str:
    """What was thought for a message, in whichever form its server told it."""
    for text in (message.reasoning_content, message.reasoning, message.thinking):
        if isinstance(text, str) and text:
            return text
    texts = []
    for part in message.reasoning_details or message.thinking_blocks or ():
        text = part.get("text") or part.get("thinking")
        if isinstance(text, str):
            texts.append(text)
    return "".join(texts)


def ends_open(messages: Sequence[ChatMessage]) -> bool:
    """True if the last message says that the answer goes on from it."""
    last = messages[-1] if messages else None
    return last is not None and (last.prefix is True or last.partial is True)


def _content(message: ChatMessage, where: str, reading: Reading) -> str:
    """The text of a content. A part that is not text is refused by its type."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for index, part in enumerate(message.content):
        is_empty = part.text is None and part.refusal is None
        if part.type in ("text", "refusal") and not is_empty:
            texts.append(part.text or part.refusal or "")
            continue
        in_result = message.role == "tool"
        text = reading.replaced(part.type, f"{where}[{index}]", in_result)
        texts.append(text)
    return "".join(texts)


def read_tools(tools: Sequence[Tool] | None) -> tuple[dict[str, Any], ...]:
    """The tools without the fields that were left out."""
    rows = []
    for tool in tools or ():
        fields = msgspec.to_builtins(tool.function)
        function = {name: value for name, value in fields.items() if value is not None}
        rows.append({"type": "function", "function": function})
    return tuple(rows)


def read_tool_choice(
    choice: ToolChoice | None, tools: Sequence[Tool] | None
) -> str | dict[str, Any]:
    """The choice of a tool; "auto" where none was given."""
    if choice is None:
        return "auto"
    if not tools and choice != "none":
        raise ParameterError("tool_choice", "tool_choice is given without tools")
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.function.name}}
    return str(choice)


def read_budget(tokens: int | None, name: str, least: int = 0) -> int | None:
    """Tokens of thinking that the field `name` allows; None leaves it to the model."""
    if tokens is not None and not least <= tokens <= MAX_INTEGER:
        raise ParameterError(
            name, f"{name} must be from {least} to {MAX_INTEGER}, not {tokens}"
        )
    return tokens


def read_template_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a template is told beside the messages: simple values, no reserved names."""
    for name, value in (options or {}).items():
        is_free = name.isidentifier() and name not in _RESERVED
        if not isinstance(value, _SIMPLE) or not is_free:
            raise ParameterError(
                "chat_template_kwargs",
                "chat_template_kwargs may hold switches, numbers and texts under names "
                "of their own",
            )
    return dict(options or {})
