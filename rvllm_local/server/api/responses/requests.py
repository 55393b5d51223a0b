"""From a responses request to a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import read_template_options
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    Object,
    checked_budget,
    convert_part,
    given_fields,
    refuse_unsupported,
    stated_sampling,
)
from rvllm_local.server.api.responses.input import Messages, input_messages
from rvllm_local.server.api.responses.schema import (
    NEUTRAL,
    InputTokensRequest,
    Reasoning,
    ResponsesRequest,
    ResponseTool,
    TextFormat,
)
from rvllm_local.server.api.tools import Tools, read_choice
from rvllm_local.server.http.problems import bad_request
from rvllm_local.types import SamplingParams

_SAMPLING = (
    "temperature",
    "top_p",
    "seed",
    "top_k",
    "min_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
)
# What may be asked to be included: log-probabilities; reasoning, which is in plain text
# anyway; and what only tools would add that never run here.
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (
    _LOGPROBS,
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
)


def responses_call(
    request: ResponsesRequest, earlier: Messages, reading: Reading
) -> ChatCall:
    """What a request asks for.

    `earlier` are the messages of the response that it goes on from. Raises `Problem`.
    """
    _check(request)
    call = input_call(request, earlier, reading)
    is_open_ended = request.max_output_tokens is None
    return replace(
        call,
        params=_params(request),
        stated=stated_sampling(request),
        template_options=read_template_options(request.chat_template_kwargs),
        is_open_ended=is_open_ended,
    )


def input_call(
    request: InputTokensRequest,
    earlier: Messages,
    reading: Reading,
) -> ChatCall:
    """The conversation of a request, for one token."""
    refuse_unsupported(request, NEUTRAL)
    head: Messages = ()
    if request.instructions is not None:
        head = ({"role": "system", "content": request.instructions},)
    tools, choice = read_choice(
        _tools(request.tools or [], reading), request.tool_choice
    )
    given = [] if request.input is None else request.input
    return ChatCall(
        model=request.model or "default",
        messages=(*head, *earlier, *input_messages(given, reading)),
        params=SamplingParams(max_tokens=1),
        tools=tools.functions,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=_format(request),
        reasoning_budget=_budget(request.reasoning),
    )


def _check(request: ResponsesRequest) -> None:
    """Raise `Problem` for what cannot be honoured."""
    text = request.text
    if text is not None and text.verbosity not in (None, "medium"):
        raise bad_request(
            "text.verbosity is not supported by this server; leave it out, or give "
            '"medium"',
            "text.verbosity",
            "unsupported",
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")
    if any(name not in _INCLUDED for name in request.include or ()):
        raise bad_request(
            f"include: use some of {', '.join(_INCLUDED)}; leave the others out",
            "include",
            "unsupported",
        )


def _params(request: ResponsesRequest) -> SamplingParams:
    length = request.max_output_tokens
    if length is not None and length < 1:
        raise bad_request(
            f"max_output_tokens must be at least 1, not {length}", "max_output_tokens"
        )
    logprobs = request.top_logprobs
    if logprobs is None and _LOGPROBS in (request.include or ()):
        logprobs = 0
    given = given_fields(request, *_SAMPLING)
    if request.top_k == -1:  # no bound, as vLLM writes it
        given["top_k"] = 0
    if length is None:  # as many as the context has room for, which is known later
        length = max(1, request.min_tokens or 0)
    return SamplingParams(max_tokens=length, logprobs=logprobs, **given)


def _tools(rows: list[Object], reading: Reading) -> Tools:
    """The functions; tools of other kinds are left out."""
    functions = []
    for index, row in enumerate(rows):
        where = f"tools[{index}]"
        if row.get("type") != "function":
            reading.leave_out(where, str(row.get("type")))
            continue
        tool = convert_part(row, ResponseTool, where, reading)
        given = given_fields(tool, "name", "description", "parameters", "strict")
        functions.append({"type": "function", "function": given})
    return Tools(tuple(functions), len(functions) < len(rows))


def _format(request: InputTokensRequest) -> Mapping[str, Any] | None:
    """The format in the shape of chat completions, where a schema has its own level."""
    form = None if request.text is None else request.text.format
    if form is None:
        return None
    given = given_fields(form, *TextFormat.__struct_fields__)
    if form.type != "json_schema":
        return given
    del given["type"]
    return {"type": "json_schema", "json_schema": given}


def _budget(reasoning: Reasoning | None) -> int | None:
    if reasoning is None:
        return None
    if reasoning.budget_tokens is not None:
        return checked_budget(reasoning.budget_tokens, "reasoning.budget_tokens")
    return None if reasoning.effort is None else EFFORT_TOKENS[reasoning.effort]
