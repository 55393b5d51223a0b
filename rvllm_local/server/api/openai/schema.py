"""The requests of OpenAI's chat completions and completions, field by field, and what of them is not taken.

Every field of the API is either here with a meaning, or accepted at the one value that changes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rvllm_local.conversation.schema import ChatMessage, Tool, ToolChoice
from rvllm_local.server.api.common import Object, StreamOptions, Strict
from rvllm_local.server.http.problems import bad_request


class Sampling(Strict):
    """What the two routes share; the lower half are extensions."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json: Object | None = None

    @property
    def wants_usage(self) -> bool:
        """True if a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_effort: (
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None
    ) = None
    reasoning_budget: int | None = None
    chat_template_kwargs: Object | None = None
    continue_final_message: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    modalities: list[str] | None = None
    verbosity: str | None = None
    prediction: Any = None
    audio: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None


class TextRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    echo: bool | None = None
    suffix: str | None = None
    parse_special: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    response_format: Object | None = None


# Fields that are known and cannot be honoured: the values at which they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"]),
    "verbosity": (None, "medium"),
    "prediction": (None,),
    "audio": (None,),
    "web_search_options": (None,),
    "functions": (None, []),
    "function_call": (None, "none"),
}


def refuse_unsupported(request: msgspec.Struct) -> None:
    """Raise `Problem` 400 for a field that would be ignored."""
    for name, neutral in _NEUTRAL.items():
        if getattr(request, name, None) not in neutral:
            raise bad_request(
                f"{name} is not supported by this server; leave it out",
                name,
                "unsupported",
            )
