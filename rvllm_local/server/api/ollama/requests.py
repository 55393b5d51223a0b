"""From Ollama's requests to calls: what each field means here, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import read_tools
from rvllm_local.server.api.common import (
    EFFORT_TOKENS,
    given_fields,
    refuse_unsupported,
)
from rvllm_local.server.api.ollama.messages import chat_messages
from rvllm_local.server.api.ollama.schema import (
    NEUTRAL,
    NEUTRAL_OPTIONS,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaOptions,
)
from rvllm_local.server.http.problems import bad_request
from rvllm_local.types import SamplingParams

Asking = OllamaChatRequest | OllamaGenerateRequest
# What Ollama takes where neither a request nor the model says anything.
_DEFAULTS = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
_WHOLE_WINDOW = (None, -1, 64)  # all tokens, or the default number of the latest


def chat_call(request: OllamaChatRequest, reading: Reading) -> ChatCall:
    """What a chat request asks for. Raises `Problem` or `ParameterError`."""
    messages = chat_messages(request.messages or [], reading)
    return _chat(request, messages, tools=read_tools(request.tools))


def generate_call(
    request: OllamaGenerateRequest, has_template: bool
) -> ChatCall | TextCall:
    """What a generate request asks for: a turn, or plain text where it is raw.

    A prompt goes through the model's chat template, if it has one. Raises `Problem` or
    `ParameterError`.
    """
    refuse_unsupported(request, NEUTRAL)
    if request.raw:
        _check_raw(request)
    if request.raw or request.suffix or not has_template:
        return _text(request)
    messages = [{"role": "user", "content": request.prompt or ""}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    return _chat(request, tuple(messages), context=tuple(request.context or ()))


def _check_raw(request: OllamaGenerateRequest) -> None:
    for name in given_fields(request, "system", "context", "template"):
        if getattr(request, name):
            raise bad_request(
                f"a raw prompt has no {name}; leave {name} out, or raw", name
            )


def _chat(
    request: Asking, messages: tuple[Mapping[str, Any], ...], **fields: Any
) -> ChatCall:
    options = request.options or OllamaOptions()
    return ChatCall(
        model=request.model,
        messages=messages,
        params=_params(request, options),
        stated=_stated(options),
        response_format=_format(request.format),
        reasoning_budget=_thinking_budget(request),
        template_options=_template_options(request),
        is_open_ended=_is_open_ended(options),
        **fields,
    )


def _text(request: OllamaGenerateRequest) -> TextCall:
    if request.context:
        raise bad_request(
            "context goes on from a turn; leave it out beside suffix, and with a model "
            "that has no chat template",
            "context",
        )
    options = request.options or OllamaOptions()
    prompt = request.prompt or ""
    if request.system:
        prompt = f"{request.system}\n\n{prompt}"
    return TextCall(
        model=request.model,
        prompts=(prompt,),
        params=_params(request, options),
        stated=_stated(options),
        suffix=request.suffix or None,
        response_format=_format(request.format),
        is_open_ended=_is_open_ended(options),
    )


def _is_open_ended(options: OllamaOptions) -> bool:
    """True where nothing but the context bounds the answer."""
    return options.num_predict is None or options.num_predict in (-1, -2)


def _stated(options: OllamaOptions) -> frozenset[str]:
    """The sampling parameters that a request sets; the model's own go for others."""
    names = set(given_fields(options, "temperature", "top_p", "top_k", "min_p"))
    if options.repeat_penalty is not None or options.repeat_last_n == 0:
        names.add("repetition_penalty")
    return frozenset(names)


def _params(request: Asking, options: OllamaOptions) -> SamplingParams:
    refuse_unsupported(options, NEUTRAL_OPTIONS)
    length = 1 if _is_open_ended(options) else options.num_predict
    if length is not None and length < 1:
        raise bad_request(
            f"options.num_predict must be at least 1, or -1 for no bound, not {length}",
            "options.num_predict",
        )
    given: dict[str, Any] = dict(_DEFAULTS)
    given |= given_fields(
        options,
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "stop",
    )
    given["top_k"] = max(0, given["top_k"])  # below zero there is no bound
    if options.seed is not None and options.seed >= 0:  # below zero it is drawn
        given["seed"] = options.seed
    if (penalty := _repeat_penalty(options)) is not None:
        given["repetition_penalty"] = penalty
    return SamplingParams(max_tokens=length or 1, logprobs=_logprobs(request), **given)


def _repeat_penalty(options: OllamaOptions) -> float | None:
    """The penalty; here it looks at all tokens, or at none."""
    if options.repeat_last_n == 0:
        return 1.0
    penalty = options.repeat_penalty
    is_neutral = penalty in (None, 1.0)
    if options.repeat_last_n not in _WHOLE_WINDOW and not is_neutral:
        raise bad_request(
            "options.repeat_last_n is not supported beside a repeat_penalty, which "
            "looks at all tokens here; leave it out, or give -1, or 0 for no penalty",
            "options.repeat_last_n",
            "unsupported",
        )
    return penalty


def _logprobs(request: Asking) -> int | None:
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _format(form: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The response format: any JSON, or a schema."""
    if form is None or form == "":
        return None
    if form == "json":
        return {"type": "json_object"}
    if isinstance(form, str):
        raise bad_request('format must be "json" or a JSON schema', "format")
    schema = {"name": "format", "schema": form}
    return {"type": "json_schema", "json_schema": schema}


def _thinking_budget(request: Asking) -> int | None:
    if request.think is False:
        return 0
    if isinstance(request.think, str):
        return EFFORT_TOKENS[request.think]
    return None


def _template_options(request: Asking) -> dict[str, Any]:
    """What a template is told of thinking."""
    if isinstance(request.think, str):
        return {"enable_thinking": True, "reasoning_effort": request.think}
    if request.think is True:
        return {"enable_thinking": True}
    return {}
