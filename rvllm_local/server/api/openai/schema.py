"""The requests of OpenAI's chat completions and completions, field by field.

Every field of the API either has a meaning here, or is taken at the values that change
nothing. So are fields that other servers added, where they have a meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from rvllm_local.conversation.schema import ChatMessage
from rvllm_local.server.api.common import Object, StreamOptions, Strict


class ReasoningSwitch(Strict):
    """How much to think, as gateways write it."""

    effort: (
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    ) = None
    max_tokens: int | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    summary: str | None = None


class ThinkingSwitch(Strict):
    """Whether and how long to think, as some models' own APIs write it."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: int | None = None
    clear_thinking: bool | None = None


class UsageOptions(Strict):
    """Whether a stream ends with token counts, as gateways write it."""

    include: bool | None = None


class Sampling(Strict):
    """What the two routes share; the lower half are extensions."""

    model: str | None = None
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
    guided_json: Object | str | None = None
    regex: str | None = None
    json_schema: Object | str | None = None
    structured_outputs: Object | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    repeat_penalty: float | None = None
    num_predict: int | None = None
    n_predict: int | None = None
    random_seed: int | None = None
    usage: UsageOptions | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """True if a stream ends with token counts."""
        if self.usage is not None and self.usage.include is True:
            return True
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Object] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    response_format: Object | None = None
    reasoning_effort: (
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    ) = None
    reasoning_budget: int | None = None
    reasoning: ReasoningSwitch | None = None
    thinking: ThinkingSwitch | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    chat_template_kwargs: Object | None = None
    continue_final_message: bool | None = None
    metadata: Object | None = None
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
    moderation: Any = None
    prompt_cache_options: Any = None
    client_metadata: Any = None

    @property
    def hides_thinking(self) -> bool:
        """True if thoughts are made and not shown."""
        if self.include_reasoning is False:
            return True
        return self.reasoning is not None and self.reasoning.exclude is True


class TextRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    suffix: str | None = None
    parse_special: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    response_format: Object | None = None


# Fields that are known and cannot be honoured: the values at which they ask for
# nothing, beside null.
CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "add_special_tokens": (False,),  # the template writes them
}
TEXT_NEUTRAL: dict[str, tuple[Any, ...]] = {"add_special_tokens": (True,)}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "prediction": (),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
