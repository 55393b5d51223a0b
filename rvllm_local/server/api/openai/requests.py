"""From OpenAI's requests to calls: what each field means here, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvllm_local.clients import http_messages
from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.requests import (
    read_messages,
    read_template_options,
    read_tool_choice,
    read_tools,
)
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    checked_budget,
    checked_priority,
    given_fields,
)
from rvllm_local.server.api.openai.schema import (
    ChatRequest,
    Sampling,
    TextRequest,
    refuse_unsupported,
)
from rvllm_local.server.http.problems import bad_request
from rvllm_local.types import MAX_LOGPROBS, SamplingParams

MAX_PROMPTS = 64
_DEFAULT_LENGTH = 16  # tokens of a completion, as in OpenAI's API


def chat_call(request: ChatRequest) -> ChatCall:
    """What a chat request asks for. Raises `Problem` or `ParameterError`."""
    refuse_unsupported(request)
    _check_stream_options(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    max_tokens = _max_tokens(request)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return ChatCall(
        model=request.model,
        messages=read_messages(request.messages),
        params=_sampling(request, max_tokens, logprobs, "max_completion_tokens"),
        tools=read_tools(request.tools),
        tool_choice=read_tool_choice(request.tool_choice, request.tools),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=_format(request, request.response_format),
        reasoning_budget=_budget(request),
        template_options=_template_options(request),
        is_open_ended=max_tokens is None,
        continues=request.continue_final_message is True,
        priority=checked_priority(request.priority or 0),
    )


def text_call(request: TextRequest) -> TextCall:
    """What a completion request asks for. Raises `Problem` or `ParameterError`."""
    _check_stream_options(request)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise bad_request(
            "best_of is not supported beyond n; leave it out", "best_of", "unsupported"
        )
    if request.echo and request.logprobs is not None:
        raise bad_request(
            "echo with logprobs is not supported: the prompt's log-probabilities "
            "are not kept",
            "echo",
        )
    if request.echo and request.suffix is not None:
        raise bad_request("echo and suffix exclude each other", "echo")
    if request.logprobs is not None and request.logprobs > MAX_LOGPROBS:
        raise bad_request(
            f"logprobs must be at most {MAX_LOGPROBS}, not {request.logprobs}",
            "logprobs",
        )
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = _DEFAULT_LENGTH
    return TextCall(
        model=request.model,
        prompts=read_prompts(request.prompt),
        params=_sampling(request, max_tokens, request.logprobs, "max_tokens"),
        suffix=request.suffix,
        parses_special=request.parse_special is not False,
        response_format=_format(request, request.response_format),
        priority=checked_priority(request.priority or 0),
    )


def read_prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """One prompt or many; each is text or token ids. Raises `Problem`."""
    is_token_ids = bool(prompt) and all(isinstance(token, int) for token in prompt)
    prompts = [prompt] if isinstance(prompt, str) or is_token_ids else prompt
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise bad_request(
            f"prompt holds {len(prompts)} prompts; give 1 to {MAX_PROMPTS}", "prompt"
        )
    return tuple(_prompt(item, index) for index, item in enumerate(prompts))


def _prompt(prompt: Any, index: int) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return prompt
    is_list = isinstance(prompt, list) and len(prompt) > 0
    if is_list and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise bad_request(
        f"prompt[{index}] must be text or a list of token ids that is not empty",
        "prompt",
    )


def _check_stream_options(request: Sampling) -> None:
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")


def _max_tokens(request: ChatRequest) -> int | None:
    if request.max_tokens is None:
        return request.max_completion_tokens
    if request.max_completion_tokens is not None:
        raise bad_request(
            "max_tokens and max_completion_tokens say the same; give one", "max_tokens"
        )
    return request.max_tokens


def _sampling(
    request: Sampling, max_tokens: int | None, logprobs: int | None, length_name: str
) -> SamplingParams:
    """The sampling parameters of either route.

    A field that is None takes the API's default. `length_name` is the field that
    an error about `max_tokens` names.
    """
    if max_tokens is not None and max_tokens < 1:
        raise bad_request(
            f"{length_name} must be at least 1, not {max_tokens}", length_name
        )
    biases = {}
    for token, bias in (request.logit_bias or {}).items():
        biases[http_messages.token_id(token)] = bias
    given = given_fields(
        request,
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "ignore_eos",
        "stop",
    )
    return SamplingParams(
        max_tokens=max_tokens or 1, logprobs=logprobs, logit_bias=biases, **given
    )


def _format(
    request: Sampling, response_format: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The response format; a guided field is another way to write one."""
    formats = _guided(request)
    if response_format is not None:
        formats["response_format"] = response_format
    if len(formats) > 1:
        names = list(formats)
        raise bad_request(f"{' and '.join(names)} exclude each other", names[0])
    return next(iter(formats.values()), None)


def _guided(request: Sampling) -> dict[str, Mapping[str, Any]]:
    """The formats that guided fields ask for, by the field's name."""
    formats: dict[str, Mapping[str, Any]] = {}
    if request.guided_regex is not None:
        formats["guided_regex"] = {"type": "regex", "regex": request.guided_regex}
    if request.guided_choice is not None:
        formats["guided_choice"] = {"type": "choice", "choices": request.guided_choice}
    if request.guided_grammar is not None:
        grammar = {"type": "grammar", "grammar": request.guided_grammar}
        formats["guided_grammar"] = grammar
    if request.guided_json is not None:
        schema = {"name": "guided", "schema": request.guided_json}
        formats["guided_json"] = {"type": "json_schema", "json_schema": schema}
    return formats


def _budget(request: ChatRequest) -> int | None:
    if request.reasoning_budget is not None:
        return checked_budget(request.reasoning_budget, "reasoning_budget")
    if request.reasoning_effort is not None:
        return EFFORT_TOKENS[request.reasoning_effort]
    return None


def _template_options(request: ChatRequest) -> dict[str, Any]:
    """What the template is told beside the messages. Raises `ParameterError`."""
    options = read_template_options(request.chat_template_kwargs)
    if request.reasoning_effort not in (None, "none"):
        options.setdefault("reasoning_effort", request.reasoning_effort)
    return options
