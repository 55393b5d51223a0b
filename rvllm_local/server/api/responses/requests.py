"""From a responses request to a call: items become messages in the shape that templates know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    checked_budget,
)
from rvllm_local.server.api.responses.schema import (
    InputItem,
    ItemPart,
    NamedFunctionChoice,
    ResponsesRequest,
    ResponseTool,
    TextFormat,
)
from rvllm_local.server.http.problems import bad_request, shown_kind
from rvllm_local.types import SamplingParams

# What may be asked to be included: log-probabilities, and reasoning, which is in plain text anyway.
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": (None, False),
    "max_tool_calls": (None,),
    "conversation": (None,),
    "prompt": (None,),
    "truncation": (None, "disabled"),
    "service_tier": (None, "auto", "default"),
}
Messages = tuple[Mapping[str, Any], ...]


def responses_call(request: ResponsesRequest, earlier: Messages) -> ChatCall:
    """What a request asks for, after the `earlier` messages of the response that it goes on from."""
    for name, neutral in _NEUTRAL.items():
        if getattr(request, name) not in neutral:
            raise bad_request(
                f"{name} is not supported by this server; leave it out",
                name,
                "unsupported",
            )
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        raise bad_request(
            "text.verbosity is not supported by this server; leave it out",
            "text.verbosity",
            "unsupported",
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")
    wrong = next(
        (name for name in request.include or () if name not in _INCLUDED), None
    )
    if wrong is not None:
        raise bad_request(
            f"include knows {', '.join(_INCLUDED)}; leave the others out",
            "include",
            "unsupported",
        )
    head = (
        ()
        if request.instructions is None
        else ({"role": "system", "content": request.instructions},)
    )
    return ChatCall(
        model=request.model,
        messages=(*head, *earlier, *input_messages(request.input)),
        params=_params(request),
        tools=tuple(
            _tool(tool, index) for index, tool in enumerate(request.tools or ())
        ),
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=_format(
            request.text.format if request.text is not None else None
        ),
        reasoning_budget=_budget(request),
        is_open_ended=request.max_output_tokens is None,
    )


def input_messages(given: str | Sequence[InputItem]) -> Messages:
    """The input as messages; calls and thoughts join the assistant's message that they belong to."""
    if isinstance(given, str):
        return ({"role": "user", "content": given},)
    if not given:
        raise bad_request("input is empty; give text or at least one item", "input")
    messages: list[dict[str, Any]] = []
    thought = ""
    for index, item in enumerate(given):
        where = f"input[{index}]"
        match item.type:
            case "message":
                messages.append(_message(item, where))
            case "function_call":
                _add_call(messages, item, where)
            case "function_call_output":
                if not item.call_id or item.output is None:
                    raise bad_request(
                        f"{where}: a function_call_output needs call_id and output",
                        where,
                    )
                output = _text(item.output, where)
                messages.append(
                    {"role": "tool", "tool_call_id": item.call_id, "content": output}
                )
            case "reasoning":
                thought = _text([*(item.content or item.summary or ())], where)
                continue
            case _:
                shown = shown_kind(item.type)
                raise bad_request(
                    f"{where} is of type {shown}, which is not supported here",
                    where,
                    "unsupported",
                )
        if thought and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
        thought = ""
    return tuple(messages)


def output_messages(output: Iterable[Mapping[str, Any]]) -> Messages:
    """The items of a response as messages, for the turn after it."""
    return input_messages([msgspec.convert(_known(item), InputItem) for item in output])


def _known(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in item.items()
        if name in InputItem.__struct_fields__
    }


def _message(item: InputItem, where: str) -> dict[str, Any]:
    if item.role is None or item.content is None:
        raise bad_request(f"{where}: a message needs role and content", where)
    return {"role": item.role, "content": _text(item.content, where)}


def _add_call(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    if not item.call_id or not item.name or item.arguments is None:
        raise bad_request(
            f"{where}: a function_call needs call_id, name and arguments", where
        )
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    call = {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments},
    }
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: str | Sequence[ItemPart], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part.text is None and part.refusal is None:
            shown = shown_kind(part.type)
            raise bad_request(
                f"{where}: part {index} is of type {shown}; this server reads text only",
                where,
            )
    return "".join(part.text or part.refusal or "" for part in content)


def _params(request: ResponsesRequest) -> SamplingParams:
    names = ("temperature", "top_p", "seed", "top_k", "min_p")
    given: dict[str, Any] = {
        name: value for name in names if (value := getattr(request, name)) is not None
    }
    wants_logprobs = request.top_logprobs is not None or _INCLUDED[0] in (
        request.include or ()
    )
    length = request.max_output_tokens
    if length is not None and length < 1:
        raise bad_request(
            f"max_output_tokens must be at least 1, not {length}", "max_output_tokens"
        )
    return SamplingParams(
        max_tokens=length or 1,
        logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        **given,
    )


def _tool(tool: ResponseTool, index: int) -> dict[str, Any]:
    if tool.type != "function" or tool.name is None:
        shown = shown_kind(tool.type)
        raise bad_request(
            f"tools[{index}] is of type {shown}; only functions with a name can be called here",
            "tools",
        )
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {
        "type": "function",
        "function": {
            name: value for name, value in function.items() if value is not None
        },
    }


def _tool_choice(request: ResponsesRequest) -> str | dict[str, Any]:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if not request.tools and choice not in ("none", "auto"):
        raise bad_request("tool_choice is given without tools", "tool_choice")
    if isinstance(choice, NamedFunctionChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return str(choice)


def _format(form: TextFormat | None) -> Mapping[str, Any] | None:
    """The format in the shape of chat completions, where a schema has a level of its own."""
    if form is None:
        return None
    given = {
        name: value
        for name, value in msgspec.structs.asdict(form).items()
        if value is not None
    }
    if form.type != "json_schema":
        return given
    return {"type": given.pop("type"), "json_schema": given}


def _budget(request: ResponsesRequest) -> int | None:
    reasoning = request.reasoning
    if reasoning is None:
        return None
    if reasoning.budget_tokens is not None:
        return checked_budget(reasoning.budget_tokens, "reasoning.budget_tokens")
    return None if reasoning.effort is None else EFFORT_TOKENS[reasoning.effort]
