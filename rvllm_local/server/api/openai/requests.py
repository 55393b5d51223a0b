"""From OpenAI's requests to calls: what each field means here, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rvllm_local.clients import http_messages
from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.server.api.openai.schema import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    NamedTool,
    Sampling,
    TextRequest,
    refuse_unsupported,
)
from rvllm_local.server.http.problems import bad_request, shown_kind
from rvllm_local.types import MAX_INTEGER, MAX_LOGPROBS, SamplingParams

MAX_PRIORITY = 100
MAX_MESSAGES = 10_000
MAX_PROMPTS = 64
# How many tokens of thinking an effort allows; None leaves it to the model.
EFFORT_TOKENS: Mapping[str, int | None] = {
    "none": 0, "minimal": 128, "low": 1024, "medium": 8192, "high": None, "xhigh": None,
}  # fmt: skip


class TokenIds(Protocol):
    """A tokenizer, for `logit_bias`."""

    vocab_size: int


def chat_call(request: ChatRequest) -> ChatCall:
    """What a chat request asks for. Raises `Problem` or `ParameterError`."""
    refuse_unsupported(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise bad_request(
            "max_tokens and max_completion_tokens say the same; give one", "max_tokens"
        )
    max_tokens = (
        request.max_completion_tokens
        if request.max_tokens is None
        else request.max_tokens
    )
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return ChatCall(
        model=request.model,
        messages=read_messages(request.messages),
        params=sampling(request, max_tokens, logprobs, "max_completion_tokens"),
        tools=tuple(_tool(tool.function) for tool in request.tools or ()),
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=_format(request, request.response_format),
        reasoning_budget=_budget(request),
        template_options=_template_options(request),
        is_open_ended=max_tokens is None,
        continues=request.continue_final_message is True,
        priority=_priority(request),
    )


def text_call(request: TextRequest) -> TextCall:
    """What a completion request asks for. Raises `Problem` or `ParameterError`."""
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise bad_request(
            "best_of is not supported beyond n; leave it out", "best_of", "unsupported"
        )
    if request.echo and request.logprobs is not None:
        raise bad_request(
            "echo with logprobs is not supported: the prompt's log-probabilities are not kept",
            "echo",
        )
    if request.echo and request.suffix is not None:
        raise bad_request("echo and suffix exclude each other", "echo")
    if request.logprobs is not None and request.logprobs > MAX_LOGPROBS:
        raise bad_request(
            f"logprobs must be at most {MAX_LOGPROBS}, not {request.logprobs}",
            "logprobs",
        )
    return TextCall(
        model=request.model,
        prompts=read_prompts(request.prompt),
        params=sampling(
            request,
            16 if request.max_tokens is None else request.max_tokens,
            request.logprobs,
            "max_tokens",
        ),
        suffix=request.suffix,
        response_format=_format(request, request.response_format),
        priority=_priority(request),
    )


def sampling(
    request: Sampling, max_tokens: int | None, logprobs: int | None, length_name: str
) -> SamplingParams:
    """The sampling parameters of either route; a None means the API's default."""
    if max_tokens is not None and max_tokens < 1:
        raise bad_request(
            f"{length_name} must be at least 1, not {max_tokens}", length_name
        )
    given: dict[str, Any] = {
        name: getattr(request, name)
        for name in (
            "temperature", "top_p", "top_k", "min_p", "seed", "n",
            "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos",
        )
        if getattr(request, name) is not None
    }  # fmt: skip
    stop = () if request.stop is None else request.stop
    biases = {
        http_messages.token_id(token): bias
        for token, bias in (request.logit_bias or {}).items()
    }
    return SamplingParams(
        max_tokens=max_tokens or 1,
        stop=stop,
        logprobs=logprobs,
        logit_bias=biases,
        **given,
    )


def read_messages(messages: Sequence[ChatMessage]) -> tuple[dict[str, Any], ...]:
    """Checked messages with plain text for content. Raises `Problem` that names the place."""
    if not messages:
        raise bad_request("messages is empty; give at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise bad_request(
            f"there are {len(messages)} messages; at most {MAX_MESSAGES} are taken",
            "messages",
        )
    return tuple(
        _message(message, f"messages[{index}]")
        for index, message in enumerate(messages)
    )


def read_prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """One prompt or many; each is text or token ids."""
    if isinstance(prompt, str) or (
        prompt and all(isinstance(one, int) for one in prompt)
    ):
        prompt = [prompt]
    if not 1 <= len(prompt) <= MAX_PROMPTS:
        raise bad_request(
            f"prompt holds {len(prompt)} prompts; give 1 to {MAX_PROMPTS}", "prompt"
        )
    return tuple(_prompt(one, index) for index, one in enumerate(prompt))


def _prompt(prompt: Any, index: int) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return tuple(prompt)
    raise bad_request(
        f"prompt[{index}] must be text or a list of token ids that is not empty",
        "prompt",
    )


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    if message.role == "function":
        raise bad_request(
            f"{where}: the role function is no longer supported; use tool",
            f"{where}.role",
        )
    if message.tool_calls and message.role != "assistant":
        raise bad_request(
            f"{where}: only an assistant's message has tool_calls",
            f"{where}.tool_calls",
        )
    if message.role == "tool" and not message.tool_call_id:
        raise bad_request(
            f"{where}: a tool message needs its tool_call_id", f"{where}.tool_call_id"
        )
    if message.content is None and message.role != "assistant":
        raise bad_request(
            f"{where}: a {message.role} message needs content", f"{where}.content"
        )
    found: dict[str, Any] = {
        "role": message.role,
        "content": read_content(message.content, where),
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            found[name] = value
    if message.tool_calls:
        found["tool_calls"] = [
            msgspec.to_builtins(call) | {"type": "function"}
            for call in message.tool_calls
        ]
    return found


def read_content(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a content. Raises `Problem` for a part that is not text, by its type."""
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type not in ("text", "refusal") or (
            part.text is None and part.refusal is None
        ):
            shown = shown_kind(part.type)
            raise bad_request(
                f"{where}.content[{index}] is of type {shown}; this server reads text only",
                f"{where}.content",
                "unsupported",
            )
    return "".join(part.text or part.refusal or "" for part in content)


def _tool(function: msgspec.Struct) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            k: v for k, v in msgspec.to_builtins(function).items() if v is not None
        },
    }


def _tool_choice(request: ChatRequest) -> str | dict[str, Any]:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if not request.tools and choice != "none":
        raise bad_request("tool_choice is given without tools", "tool_choice")
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.function.name}}
    return str(choice)


def _format(
    request: Sampling, response_format: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The response format; the guided fields are another way to write one."""
    guided: list[tuple[str, Mapping[str, Any]]] = []
    if request.guided_regex is not None:
        guided.append(
            ("guided_regex", {"type": "regex", "regex": request.guided_regex})
        )
    if request.guided_choice is not None:
        guided.append(
            ("guided_choice", {"type": "choice", "choices": request.guided_choice})
        )
    if request.guided_grammar is not None:
        guided.append(
            ("guided_grammar", {"type": "grammar", "grammar": request.guided_grammar})
        )
    if request.guided_json is not None:
        schema = {"name": "guided", "schema": request.guided_json}
        guided.append(("guided_json", {"type": "json_schema", "json_schema": schema}))
    if len(guided) + (response_format is not None) > 1:
        names = [name for name, _ in guided] + ["response_format"] * (
            response_format is not None
        )
        raise bad_request(f"{' and '.join(names)} exclude each other", names[0])
    return guided[0][1] if guided else response_format


def _budget(request: ChatRequest) -> int | None:
    if request.reasoning_budget is not None:
        return checked_budget(request.reasoning_budget, "reasoning_budget")
    return (
        None
        if request.reasoning_effort is None
        else EFFORT_TOKENS[request.reasoning_effort]
    )


def checked_budget(tokens: int, name: str, least: int = 0) -> int:
    """Tokens of thinking that a field allows. Raises `Problem`."""
    if not least <= tokens <= MAX_INTEGER:
        raise bad_request(
            f"{name} must be from {least} to {MAX_INTEGER}, not {tokens}", name
        )
    return tokens


def _template_options(request: ChatRequest) -> dict[str, Any]:
    """What the template is told beside the messages: simple values only, and nothing that the server sets."""
    options = dict(request.chat_template_kwargs or {})
    for name, value in options.items():
        if (
            not isinstance(value, str | int | float | bool | None)
            or not name.isidentifier()
            or name in _RESERVED
        ):
            raise bad_request(
                "chat_template_kwargs may hold switches, numbers and texts under names of their own",
                "chat_template_kwargs",
            )
    if request.reasoning_effort is not None and request.reasoning_effort != "none":
        options.setdefault("reasoning_effort", request.reasoning_effort)
    return options


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


def _priority(request: Sampling) -> int:
    priority = request.priority or 0
    if abs(priority) > MAX_PRIORITY:
        raise bad_request(
            f"priority must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}",
            "priority",
        )
    return priority
