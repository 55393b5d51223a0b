"""The requests of OpenAI's responses API, field by field."""

from __future__ import annotations

from typing import Any, Literal

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
    output: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    encrypted_content: str | None = None


class ResponseTool(Strict, kw_only=True):
    """A tool; functions are the only kind."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class NamedFunctionChoice(Strict, kw_only=True):
    """A tool choice that names its function."""

    type: Literal["function"]
    name: str


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

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None
    budget_tokens: int | None = None


class ResponsesRequest(Strict, kw_only=True):
    """POST /v1/responses."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    background: bool | None = None
    max_tool_calls: int | None = None
    conversation: Any = None
    prompt: Any = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
