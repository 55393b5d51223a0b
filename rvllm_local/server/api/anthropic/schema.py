"""The requests of Anthropic's messages API, field by field."""

from __future__ import annotations

from typing import Any, Literal

from rvllm_local.server.api.common import Object, Strict


class Block(Strict, kw_only=True):
    """A block of a message's content, of any type; which fields are set depends on it."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Object | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: Object | None = None
    citations: Any = None
    caller: Any = None
    toolset_name: str | None = None
    source: Any = None
    transformations: Any = None
    title: str | None = None
    context: str | None = None
    parsed_output: Any = None  # the text, as a client read it


class Message(Strict, kw_only=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(Strict, kw_only=True):
    """A tool of the client's own; server tools are left out before they are read."""

    name: str
    input_schema: Object
    description: str | None = None
    type: Literal["custom"] | None = None
    allowed_callers: Any = None
    defer_loading: Any = None
    strict: bool | None = None
    cache_control: Object | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[Object] | None = None


class ToolChoice(Strict, kw_only=True):
    """Which tool must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict, kw_only=True):
    """Whether and how long to think."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Strict, kw_only=True):
    """A schema for the answer."""

    type: Literal["json_schema"]
    schema: Object


class OutputConfig(Strict, kw_only=True):
    """How the answer is made."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Strict):
    """Who asks; nothing is done with it."""

    user_id: str | None = None


class CountRequest(Strict, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[Message]
    system: str | list[Block] | None = None
    tools: list[Object] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the older place of the format
    cache_control: Object | None = None
    context_management: Any = None
    thread: Any = None
    container: Any = None
    mcp_servers: Any = None
    compaction: Any = None
    speed: str | None = None
    betas: Any = None
    billing_policy: Any = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: Any = None
    inference_geo: str | None = None
    fallbacks: Any = None
    fallback_credit_token: Any = None

    @property
    def omits_thinking(self) -> bool:
        """True if the text of thoughts is not to be shown."""
        return self.thinking is not None and self.thinking.display == "omitted"


# Fields that are known and cannot be honoured: the values at which they ask for
# nothing, beside null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "compaction": (),
    "speed": ("standard",),
    "billing_policy": ({"type": "billing_policy", "bill_to": "self"},),
    "diagnostics": ({}, {"previous_message_id": None}),
    "inference_geo": ("global", "not_available"),
    "fallbacks": ([], "default"),
    "fallback_credit_token": (),
}
