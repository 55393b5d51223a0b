"""Every field that the official clients can send is known to the server.

The pinned packages' own types are walked, so that the list cannot age in silence.
"""

from __future__ import annotations

import json
import pkgutil
import typing
from typing import Any

import msgspec
import pytest

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

# The clients' types go by their names: their packages take seconds to import, and each
# worker that collects these tests would do so.
CHAT = "openai.types.chat"
RESPONSES = "openai.types.responses"
ANTHROPIC = "anthropic.types"
BETA = "anthropic.types.beta"


def last_name(name: str) -> str:
    return name.rpartition(".")[2]


REQUESTS: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    (
        f"{CHAT}.completion_create_params.CompletionCreateParamsNonStreaming",
        ChatRequest,
        {"messages": []},
    ),
    (
        "openai.types.completion_create_params.CompletionCreateParamsNonStreaming",
        TextRequest,
        {"prompt": ""},
    ),
    (
        f"{RESPONSES}.response_create_params.ResponseCreateParamsNonStreaming",
        ResponsesRequest,
        {},
    ),
    (
        f"{RESPONSES}.input_token_count_params.InputTokenCountParams",
        InputTokensRequest,
        {},
    ),
    (f"{RESPONSES}.response_compact_params.ResponseCompactParams", CompactRequest, {}),
    (
        f"{ANTHROPIC}.message_create_params.MessageCreateParamsNonStreaming",
        MessagesRequest,
        {"messages": [], "max_tokens": 1},
    ),
    (
        f"{BETA}.message_create_params.MessageCreateParamsNonStreaming",
        MessagesRequest,
        {"messages": [], "max_tokens": 1},
    ),
    (
        f"{ANTHROPIC}.message_count_tokens_params.MessageCountTokensParams",
        CountRequest,
        {"messages": []},
    ),
    (
        f"{BETA}.message_count_tokens_params.MessageCountTokensParams",
        CountRequest,
        {"messages": []},
    ),
]


@pytest.mark.parametrize(
    ("params", "kind", "needed"), REQUESTS, ids=[last_name(row[0]) for row in REQUESTS]
)
def test_every_field_of_a_request_is_known(
    params: str, kind: type[msgspec.Struct], needed: dict[str, Any]
) -> None:
    fields = set(typing.get_type_hints(pkgutil.resolve_name(params))) - {"model"}
    nulls = dict.fromkeys(fields - set(needed))
    json_body.decode(json.dumps({**nulls, **needed}).encode(), kind)


def members(union: Any) -> list[Any]:
    """The dictionary types of a union, however deep."""
    if hasattr(union, "__total__"):
        return [union]
    return [row for part in typing.get_args(union) for row in members(part)]


# Which of a union's dictionaries are read, and into what; the others are left out or
# refused by their type, whatever fields they have.
PARTS: list[tuple[str, type[msgspec.Struct], set[str]]] = [
    (f"{CHAT}.ChatCompletionMessageParam", ChatMessage, set()),
    (f"{CHAT}.ChatCompletionContentPartParam", ContentPart, set()),
    (f"{CHAT}.ChatCompletionFunctionToolParam", Tool, set()),
    (
        f"{RESPONSES}.ResponseInputItemParam",
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
    (f"{RESPONSES}.FunctionToolParam", ResponseTool, set()),
    (
        f"{ANTHROPIC}.ContentBlockParam",
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
    (f"{ANTHROPIC}.ToolParam", AnthropicTool, set()),
    (f"{BETA}.BetaToolParam", AnthropicTool, set()),
]


@pytest.mark.parametrize(
    ("union", "kind", "names"),
    PARTS,
    ids=[f"{number} {row[1].__name__}" for number, row in enumerate(PARTS)],
)
def test_every_field_of_a_part_is_known(
    union: str, kind: type[msgspec.Struct], names: set[str]
) -> None:
    rows = members(pkgutil.resolve_name(union))
    read = [row for row in rows if not names or row.__name__ in names]
    assert len(read) >= len(names), "a type that is read has another name now"
    for params in read:
        # By the names that are sent: Python's own may differ.
        sent = {row.encode_name for row in msgspec.structs.fields(kind)}
        unknown = set(typing.get_type_hints(params)) - sent
        assert not unknown, f"{params.__name__} has fields that nobody reads: {unknown}"


# What clients read out of answers, and then send back as a part of the history.
ANSWERS: list[tuple[str, type[msgspec.Struct]]] = [
    (f"{CHAT}.ParsedChatCompletionMessage", ChatMessage),
    (f"{CHAT}.ParsedFunctionToolCall", MessageToolCall),
    (f"{CHAT}.ParsedFunction", CalledFunction),
    (f"{RESPONSES}.ParsedResponseOutputMessage", InputItem),
    (f"{RESPONSES}.ParsedResponseOutputText", ItemPart),
    (f"{RESPONSES}.ParsedResponseFunctionToolCall", InputItem),
    (f"{RESPONSES}.ResponseReasoningItem", InputItem),
    (f"{ANTHROPIC}.ParsedTextBlock", Block),
    (f"{ANTHROPIC}.ThinkingBlock", Block),
    (f"{ANTHROPIC}.ToolUseBlock", Block),
    (f"{BETA}.parsed_beta_message.ParsedBetaTextBlock", Block),
    (f"{BETA}.BetaToolUseBlock", Block),
]


@pytest.mark.parametrize(
    ("model", "kind"), ANSWERS, ids=[last_name(row[0]) for row in ANSWERS]
)
def test_every_field_of_an_answer_is_known_when_it_comes_back(
    model: str, kind: type[msgspec.Struct]
) -> None:
    answer = pkgutil.resolve_name(model)
    sent = {row.encode_name for row in msgspec.structs.fields(kind)}
    fields = {row.alias or name for name, row in answer.model_fields.items()}
    assert not fields - sent
