"""The requests of OpenAI's responses API, field by field.

Items and tools are read one by one (`requests.py`, `items_in.py`), since the API has
many kinds of both and this server reads some.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rvllm_local.server.api.common import Object, StreamOptions, Strict


class ItemPart(Strict, kw_only=True):
    """A part of an item's content or summary; only text can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    image_url: Any = None
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None
    parsed: Any = None  # the text, as a client read it


class InputItem(Strict, kw_only=True):
    """An item of the input, of any type; which fields are set depends on it."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    parsed_arguments: Any = None  # the same, as a client read them
    output: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    encrypted_content: str | None = None
    input: str | None = None
    caller: Any = None
    namespace: Any = None
    is_async: Any = msgspec.field(default=None, name="async")


class ResponseTool(Strict, kw_only=True):
    """A function; tools of other types are left out before they are read."""

    type: str
    name: str
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None
    allowed_callers: Any = None
    defer_loading: Any = None
    output_schema: Any = None
    is_async: Any = msgspec.field(default=None, name="async")


class TextFormat(Strict, kw_only=True):
    """The form of the answer; regex, choice and grammar are extensions."""

    type: str
    name: str | None = None
    schema: Object | None = None
    strict: bool | None = None
    description: str | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None


class TextConfig(Strict):
    """How the text of the answer is made."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Strict):
    """How much to think. `budget_tokens` is an extension."""

    effort: (
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    ) = None
    summary: str | None = None
    generate_summary: str | None = None
    context: Literal["auto", "all_turns"] | None = None
    mode: Literal["standard"] | None = None
    budget_tokens: int | None = None


class InputTokensRequest(Strict, kw_only=True):
    """POST /v1/responses/input_tokens."""

    model: str | None = None
    input: str | list[Object] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Object] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None
    personality: Any = None


class ResponsesRequest(InputTokensRequest, kw_only=True):
    """POST /v1/responses."""

    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: Object | None = None
    client_metadata: Any = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    service_tier: str | None = None
    background: bool | None = None
    background_options: Any = None
    context_management: Any = None
    access_programs: Any = None
    moderation: Any = None
    image: Any = None
    max_tool_calls: int | None = None  # of tools that would run here: none does
    prompt: Any = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    chat_template_kwargs: Object | None = None


class CompactRequest(InputTokensRequest, kw_only=True):
    """POST /v1/responses/compact."""

    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    service_tier: str | None = None
    image: Any = None


class CancelRequest(Strict):
    """POST /v1/responses/{response_id}/cancel: an empty object, or nothing."""


# Fields that are known and cannot be honoured: the values at which they ask for
# nothing, beside null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "access_programs": (),
    "moderation": (),
    "image": (),
    "conversation": (),
    "personality": (),
    "prompt": (),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
}
