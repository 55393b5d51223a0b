"""From Anthropic's requests to calls: what each field means here, and what cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.reading import Reading
from rvllm_local.server.api.anthropic.input import input_messages
from rvllm_local.server.api.anthropic.schema import (
    NEUTRAL,
    AnthropicTool,
    CountRequest,
    MessagesRequest,
)
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    Object,
    checked_budget,
    convert_part,
    given_fields,
    refuse_unsupported,
    stated_sampling,
)
from rvllm_local.server.api.tools import Choice, Tools
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.types import SamplingParams

# An edit that clears no thoughts, as agents send it with every request.
_KEEPS_ALL = (None, "all", {"type": "all"})


def messages_call(request: MessagesRequest, reading: Reading) -> ChatCall:
    """What a messages request asks for. Raises `Problem` or `ParameterError`."""
    given = given_fields(request, "temperature", "top_p", "top_k")
    if request.temperature is not None and request.temperature > 1:
        raise bad_request(
            f"temperature must be from 0 to 1, not {request.temperature}", "temperature"
        )
    if request.top_k == -1:  # no bound, as other servers write it
        given["top_k"] = 0
    stop = request.stop_sequences or ()
    params = SamplingParams(max_tokens=request.max_tokens, stop=stop, **given)
    call = count_call(request, params, reading)
    return dataclasses.replace(call, stated=stated_sampling(request))


def count_call(
    request: CountRequest, params: SamplingParams, reading: Reading
) -> ChatCall:
    """The conversation of a request, with the sampling parameters of whoever asks."""
    _refuse_threads(request)
    refuse_unsupported(request, NEUTRAL)
    _check_edits(request.context_management)
    choice = request.tool_choice
    is_parallel = choice is None or choice.disable_parallel_tool_use is not True
    tools = _tools(request.tools or [], reading)
    messages = input_messages(request, reading)
    return ChatCall(
        model=request.model or "default",
        messages=messages,
        params=params,
        tools=tools.functions,
        tool_choice=_tool_choice(request, tools),
        parallel_tool_calls=is_parallel,
        response_format=_format(request),
        reasoning_budget=_budget(request),
        continues=request.messages[-1].role == "assistant",
    )


def _refuse_threads(request: CountRequest) -> None:
    """Refuse conversations that the server holds.

    Clients that see this answer send the whole conversation instead.
    """
    if request.thread is not None:
        raise Problem(
            400,
            "thread is not supported by this server, which keeps no conversation; "
            "send all messages, without thread",
            "thread_unsupported_request",
            "thread",
            details={"error_code": "thread_unsupported_request"},
        )


def _check_edits(management: Any) -> None:
    """Raise `Problem` for an edit of the context that would take something away."""
    if management is None:
        return
    edits = management.get("edits") if isinstance(management, dict) else None
    if not isinstance(edits, list | None):
        raise bad_request(
            "context_management.edits must be a list", "context_management.edits"
        )
    for index, edit in enumerate(edits or ()):
        match edit:
            case {"type": "clear_thinking_20251015"} if edit.get("keep") in _KEEPS_ALL:
                continue
        where = f"context_management.edits[{index}]"
        raise bad_request(
            f"{where} is not supported by this server, which edits no context; leave "
            "it out, or give a clear_thinking_20251015 that keeps all",
            where,
            "unsupported",
        )


def _tools(rows: list[Object], reading: Reading) -> Tools:
    """The client's own tools; server tools are left out."""
    functions = []
    for index, row in enumerate(rows):
        where = f"tools[{index}]"
        kind = row.get("type")
        if kind not in (None, "custom"):
            reading.leave_out(where, str(kind))
            continue
        tool = convert_part(row, AnthropicTool, where, reading)
        function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
        function |= given_fields(tool, "description", "strict")
        functions.append({"type": "function", "function": function})
    return Tools(tuple(functions), len(functions) < len(rows))


def _tool_choice(request: CountRequest, tools: Tools) -> Choice:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if (choice.type == "tool") != (choice.name is not None):
        raise bad_request(
            "tool_choice has a name if its type is tool, and only then", "tool_choice"
        )
    if choice.type == "any":
        return tools.required()
    return choice.type if choice.name is None else tools.named(choice.name)


def _format(request: CountRequest) -> Mapping[str, Any] | None:
    form = request.output_format
    if request.output_config is not None and request.output_config.format is not None:
        form = request.output_config.format
    if form is None:
        return None
    schema = {"name": "answer", "schema": form.schema}
    return {"type": "json_schema", "json_schema": schema}


def _budget(request: CountRequest) -> int | None:
    thinking = request.thinking
    if thinking is not None:
        if (thinking.type == "enabled") != (thinking.budget_tokens is not None):
            raise bad_request(
                "thinking has budget_tokens if its type is enabled, and only then",
                "thinking",
            )
        if thinking.type == "disabled":
            return 0
        if thinking.budget_tokens is not None:
            return checked_budget(thinking.budget_tokens, "thinking.budget_tokens", 1)
    effort = None if request.output_config is None else request.output_config.effort
    return None if effort is None else EFFORT_TOKENS[effort]
