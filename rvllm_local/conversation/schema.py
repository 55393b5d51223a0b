"""The fields of a conversation as callers write them: messages, tools and the choice of one.

The shape is that of OpenAI's chat completions. The server's dialects and `LLM.chat`
read the same types, so that both refuse the same fields. Nothing here knows a model.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Object = dict[str, Any]


class Fields(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """An object in which every field is known."""


class ContentPart(Fields):
    """A part of a message's content; only text can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    cache_control: Object | None = None
    prompt_cache_breakpoint: Any = None
    video_url: Any = None


class CalledFunction(Fields):
    """A call that the model made; `arguments` is JSON text.

    Clients that read it add `parsed_arguments`, and may send both back.
    """

    name: str
    arguments: str
    parsed_arguments: Any = None


class MessageToolCall(Fields):
    """A call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(Fields):
    """One message; which fields may be set depends on the role."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None  # the content, as a client read it
    thinking: str | None = None
    reasoning_details: list[Object] | None = None
    thinking_blocks: list[Object] | None = None
    prefix: bool | None = None  # the answer goes on from this message
    partial: bool | None = None


class Function(Fields):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool; functions are the only kind."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Fields):
    """The name of a function that must be called."""

    name: str


class NamedTool(Fields):
    """A tool choice that names its function."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class ChatArguments(Fields):
    """The arguments of `LLM.chat`, under the names that the server's fields have."""

    messages: list[ChatMessage]
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_budget: int | None = None
    chat_template_kwargs: Object | None = None
    continue_final_message: bool | None = None
