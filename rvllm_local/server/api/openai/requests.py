"""From OpenAI's requests to calls: what each field means here, and what cannot be."""

from __future__ import annotations

from typing import Any

from rvllm_local.clients import http_messages
from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import (
    ends_open,
    read_messages,
    read_template_options,
    read_tools,
)
from rvllm_local.conversation.schema import Tool
from rvllm_local.server.api.common import (
    checked_priority,
    convert_part,
    given_fields,
    refuse_unsupported,
    stated_sampling,
)
from rvllm_local.server.api.openai.response_format import read_format
from rvllm_local.server.api.openai.schema import (
    CHAT_NEUTRAL,
    NEUTRAL,
    TEXT_NEUTRAL,
    ChatRequest,
    Sampling,
    TextRequest,
)
from rvllm_local.server.api.openai.thinking import (
    thinking_budget,
    thinking_effort,
    thinking_switch,
)
from rvllm_local.server.api.tools import Tools, read_choice
from rvllm_local.server.http.problems import bad_request
from rvllm_local.types import MAX_LOGPROBS, SamplingParams

MAX_PROMPTS = 64
_SMALLEST_TOP_P = 1e-9
_DEFAULT_LENGTH = 16  # tokens of a completion, as in OpenAI's API


def chat_call(request: ChatRequest, reading: Reading) -> ChatCall:
    """What a chat request asks for. Raises `Problem` or `ParameterError`."""
    refuse_unsupported(request, NEUTRAL | CHAT_NEUTRAL)
    _check_stream_options(request)
    _check_choices(request)
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    max_tokens, length_name = _max_tokens(request)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    tools, choice = read_choice(_tools(request, reading), request.tool_choice)
    return ChatCall(
        model=request.model or "default",
        messages=read_messages(request.messages, reading),
        params=_sampling(request, max_tokens, logprobs, length_name),
        stated=stated_sampling(request),
        tools=tools.functions,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=read_format(request, request.response_format),
        reasoning_budget=thinking_budget(request),
        template_options=_template_options(request),
        is_open_ended=max_tokens is None,
        continues=_continues(request),
        priority=checked_priority(request.priority or 0),
    )


def text_call(request: TextRequest) -> TextCall:
    """What a completion request asks for. Raises `Problem` or `ParameterError`."""
    refuse_unsupported(request, NEUTRAL | TEXT_NEUTRAL)
    _check_stream_options(request)
    _check_choices(request)
    suffix = request.suffix or None
    if request.echo and suffix is not None:
        raise bad_request("echo and suffix exclude each other", "echo")
    for name, count in given_fields(request, "logprobs", "prompt_logprobs").items():
        if count > MAX_LOGPROBS:
            raise bad_request(
                f"{name} must be at most {MAX_LOGPROBS}, not {count}", name
            )
    lengths = _lengths(request, "max_tokens", "num_predict", "n_predict")
    max_tokens = next(iter(lengths.values()), _DEFAULT_LENGTH)
    is_open_ended = max_tokens == -1
    return TextCall(
        model=request.model or "default",
        prompts=read_prompts(request.prompt),
        stated=stated_sampling(request),
        params=_sampling(
            request,
            None if is_open_ended else max_tokens,
            request.logprobs,
            "max_tokens",
            _prompt_logprobs(request, max_tokens),
        ),
        is_open_ended=is_open_ended,
        suffix=suffix,
        parses_special=request.parse_special is not False,
        response_format=read_format(request, request.response_format),
        priority=checked_priority(request.priority or 0),
    )


def _prompt_logprobs(request: TextRequest, max_tokens: int) -> int | None:
    """How many alternatives of each prompt token are scored; None for no scores.

    A request for no token at all is one that only scores, or only echoes.
    """
    counts = [0] if max_tokens == 0 else []
    if request.prompt_logprobs is not None:
        counts.append(request.prompt_logprobs)
    if request.echo and request.logprobs is not None:
        counts.append(request.logprobs)
    return max(counts, default=None)


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


def _check_choices(request: Sampling) -> None:
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise bad_request(
            "best_of is not supported beyond n; leave it out", "best_of", "unsupported"
        )


def _continues(request: ChatRequest) -> bool:
    """True if the answer goes on from the last message."""
    continues = request.continue_final_message is True
    continues = continues or ends_open(request.messages)
    if request.add_generation_prompt is False and not continues:
        raise bad_request(
            "add_generation_prompt is false, which needs continue_final_message; leave "
            "it out",
            "add_generation_prompt",
        )
    return continues


def _lengths(request: Sampling, *names: str) -> dict[str, int]:
    """The most tokens of the answer, by the fields that say it; they must agree."""
    lengths = given_fields(request, *names)
    if len(set(lengths.values())) > 1:
        shown = " and ".join(lengths)
        raise bad_request(f"{shown} say the same; give one", next(iter(lengths)))
    return lengths


def _max_tokens(request: ChatRequest) -> tuple[int | None, str]:
    """The most tokens of the answer, and the field that says it.

    None, like -1, leaves it to the context.
    """
    lengths = _lengths(
        request, "max_tokens", "max_completion_tokens", "num_predict", "n_predict"
    )
    name, length = next(iter(lengths.items()), ("max_completion_tokens", None))
    return (None if length == -1 else length), name


def _sampling(
    request: Sampling,
    max_tokens: int | None,
    logprobs: int | None,
    length_name: str,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The sampling parameters of either route.

    A field that is None takes the API's default. `length_name` is the field that
    an error about `max_tokens` names.
    """
    least = 1 if prompt_logprobs is None else 0
    if max_tokens is not None and max_tokens < least:
        raise bad_request(
            f"{length_name} must be at least {least}, not {max_tokens}", length_name
        )
    if max_tokens is None:  # as many as the context has room for, which is known later
        max_tokens = max(1, request.min_tokens or 0)
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
        "stop_token_ids",
        "min_tokens",
    )
    if request.top_k == -1:  # no bound, as vLLM writes it
        given["top_k"] = 0
    if request.top_p == 0:  # the most likely token alone, as in OpenAI's API
        given["top_p"] = _SMALLEST_TOP_P
    if request.random_seed is not None:
        given.setdefault("seed", request.random_seed)
    if request.repeat_penalty is not None:
        given.setdefault("repetition_penalty", request.repeat_penalty)
    return SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        logit_bias=biases,
        prompt_logprobs=prompt_logprobs,
        **given,
    )


def _tools(request: ChatRequest, reading: Reading) -> Tools:
    """The functions; tools of other kinds are left out."""
    functions = []
    for index, row in enumerate(request.tools or ()):
        where = f"tools[{index}]"
        kind = row.get("type", "function")
        if kind == "function":
            functions.append(convert_part(row, Tool, where, reading))
        else:
            reading.leave_out(where, str(kind))
    has_left_out = len(functions) < len(request.tools or ())
    return Tools(read_tools(functions), has_left_out)


def _template_options(request: ChatRequest) -> dict[str, Any]:
    """What the template is told beside the messages. Raises `ParameterError`."""
    options = read_template_options(request.chat_template_kwargs)
    if (effort := thinking_effort(request)) is not None:
        options.setdefault("reasoning_effort", effort)
    if (switch := thinking_switch(request)) is not None:
        options.setdefault("enable_thinking", switch)
    return options
