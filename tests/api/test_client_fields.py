"""Every field that the official clients can send is known to the server.

The pinned packages' own types are walked, so that the list cannot age in silence.
"""

from __future__ import annotations

import json
import typing
from typing import Any

import anthropic.types as anthropic_types
import anthropic.types.beta as beta_types
import msgspec
import openai.types as openai_types
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_params
from anthropic.types.beta import parsed_beta_message
from openai.types import chat as chat_types
from openai.types import responses as response_types
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses import (
    input_token_count_params,
    response_compact_params,
    response_create_params,
)
from pydantic import BaseModel

from rvllm_local.conversation.schema import (
    CalledFunction,
    ChatMessage,
    ContentPart,
    MessageToolCall,
    Tool,
)
from rvllm_local.server.api.anthropic.schema import (
    AnthropicTool,
    Block,
    CountRequest,
    MessagesRequest,
)
from rvllm_local.server.api.openai.schema import ChatRequest, TextRequest
from rvllm_local.server.api.responses.schema import (
    CompactRequest,
    InputItem,
    InputTokensRequest,
    ItemPart,
    ResponsesRequest,
    ResponseTool,
)
from rvllm_local.server.http import json_body

REQUESTS: list[tuple[Any, type[msgspec.Struct], dict[str, Any]]] = [
    (chat_params.CompletionCreateParamsNonStreaming, ChatRequest, {"messages": []}),
    (CompletionCreateParamsNonStreaming, TextRequest, {"prompt": ""}),
    (response_create_params.ResponseCreateParamsNonStreaming, ResponsesRequest, {}),
    (input_token_count_params.InputTokenCountParams, InputTokensRequest, {}),
    (response_compact_params.ResponseCompactParams, CompactRequest, {}),
    (
        message_create_params.MessageCreateParamsNonStreaming,
        MessagesRequest,
        {"messages": [], "max_tokens": 1},
    ),
    (
        beta_params.MessageCreateParamsNonStreaming,
        MessagesRequest,
        {"messages": [], "max_tokens": 1},
    ),
    (
        message_count_tokens_params.MessageCountTokensParams,
        CountRequest,
        {"messages": []},
    ),
    (beta_count_params.MessageCountTokensParams, CountRequest, {"messages": []}),
]


@pytest.mark.parametrize(
    ("params", "kind", "needed"), REQUESTS, ids=[row[0].__name__ for row in REQUESTS]
)
def test_every_field_of_a_request_is_known(
    params: Any, kind: type[msgspec.Struct], needed: dict[str, Any]
) -> None:
    fields = set(typing.get_type_hints(params)) - {"model"}
    nulls = dict.fromkeys(fields - set(needed))
    json_body.decode(json.dumps({**nulls, **needed}).encode(), kind)


def members(union: Any) -> list[Any]:
    """The dictionary types of a union, however deep."""
    if hasattr(union, "__total__"):
        return [union]
    return [row for part in typing.get_args(union) for row in members(part)]


# Which of a union's dictionaries are read, and into what; the others are left out or
# refused by their type, whatever fields they have.
PARTS: list[tuple[Any, type[msgspec.Struct], set[str]]] = [
    (chat_types.ChatCompletionMessageParam, ChatMessage, set()),
    (chat_types.ChatCompletionContentPartParam, ContentPart, set()),
    (chat_types.ChatCompletionFunctionToolParam, Tool, set()),
    (
        response_types.ResponseInputItemParam,
        InputItem,
        {
            "EasyInputMessageParam",
            "Message",
            "ResponseOutputMessageParam",
            "ResponseFunctionToolCallParam",
            "FunctionCallOutput",
            "ResponseReasoningItemParam",
            "ResponseCustomToolCallParam",
            "ResponseCustomToolCallOutputParam",
            "ItemReference",
            "ResponseCompactionItemParamParam",
        },
    ),
    (response_types.FunctionToolParam, ResponseTool, set()),
    (
        anthropic_types.ContentBlockParam,
        Block,
        {
            "TextBlockParam",
            "ImageBlockParam",
            "DocumentBlockParam",
            "ThinkingBlockParam",
            "RedactedThinkingBlockParam",
            "ToolUseBlockParam",
            "ToolResultBlockParam",
        },
    ),
    (anthropic_types.ToolParam, AnthropicTool, set()),
    (beta_types.BetaToolParam, AnthropicTool, set()),
]


@pytest.mark.parametrize(
    ("union", "kind", "names"),
    PARTS,
    ids=[f"{number} {row[1].__name__}" for number, row in enumerate(PARTS)],
)
def test_every_field_of_a_part_is_known(
    union: Any, kind: type[msgspec.Struct], names: set[str]
) -> None:
    read = [row for row in members(union) if not names or row.__name__ in names]
    assert len(read) >= len(names), "a type that is read has another name now"
    for params in read:
        # By the names that are sent: Python's own may differ.
        sent = {row.encode_name for row in msgspec.structs.fields(kind)}
        unknown = set(typing.get_type_hints(params)) - sent
        assert not unknown, f"{params.__name__} has fields that nobody reads: {unknown}"


# What clients read out of answers, and then send back as a part of the history.
ANSWERS: list[tuple[type[BaseModel], type[msgspec.Struct]]] = [
    (chat_types.ParsedChatCompletionMessage, ChatMessage),
    (chat_types.ParsedFunctionToolCall, MessageToolCall),
    (chat_types.ParsedFunction, CalledFunction),
    (response_types.ParsedResponseOutputMessage, InputItem),
    (response_types.ParsedResponseOutputText, ItemPart),
    (response_types.ParsedResponseFunctionToolCall, InputItem),
    (response_types.ResponseReasoningItem, InputItem),
    (anthropic_types.ParsedTextBlock, Block),
    (anthropic_types.ThinkingBlock, Block),
    (anthropic_types.ToolUseBlock, Block),
    (parsed_beta_message.ParsedBetaTextBlock, Block),
    (beta_types.BetaToolUseBlock, Block),
]


@pytest.mark.parametrize(
    ("model", "kind"), ANSWERS, ids=[row[0].__name__ for row in ANSWERS]
)
def test_every_field_of_an_answer_is_known_when_it_comes_back(
    model: type[BaseModel], kind: type[msgspec.Struct]
) -> None:
    sent = {row.encode_name for row in msgspec.structs.fields(kind)}
    fields = {row.alias or name for name, row in model.model_fields.items()}
    assert not fields - sent


def test_the_types_that_are_walked_are_those_of_the_clients() -> None:
    assert openai_types.__name__ == "openai.types"
