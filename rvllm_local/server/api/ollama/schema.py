"""The requests of Ollama's API, field by field.

Every field has a meaning here, or is taken at the values that change nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rvllm_local.conversation.schema import Tool
from rvllm_local.server.api.common import Object, Strict

Level = Literal["low", "medium", "high", "max"]


class OllamaOptions(Strict):
    """How tokens are chosen; the lower half says how a runtime loads a model."""

    num_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    tfs_z: float | None = None
    typical_p: float | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    penalize_newline: Any = None
    num_keep: Any = None
    num_ctx: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    num_gqa: Any = None
    num_thread: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    numa: Any = None
    rope_frequency_base: Any = None
    rope_frequency_scale: Any = None


class _Asking(Strict, kw_only=True):
    """What both ways to ask a model share."""

    model: str
    stream: bool | None = None
    format: str | Object | None = None
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None
    think: bool | Level | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaFunctionCall(Strict):
    """A call that the model made. Its arguments are an object, not text."""

    name: str
    arguments: Object | str | None = None
    index: int | None = None
    description: str | None = None


class OllamaToolCall(Strict):
    """A call in an assistant's message."""

    function: OllamaFunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class OllamaMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class OllamaChatRequest(_Asking, kw_only=True):
    """POST /api/chat. Without messages it loads the model, or unloads it."""

    messages: list[OllamaMessage] | None = None
    tools: list[Tool] | None = None


class OllamaGenerateRequest(_Asking, kw_only=True):
    """POST /api/generate. Without a prompt it loads the model, or unloads it."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    width: Any = None
    height: Any = None
    steps: Any = None


class OllamaNameRequest(Strict):
    """A model by its name, under the field's present or its former name."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: str | None = None
    options: Object | None = None


class OllamaPullRequest(Strict):
    """POST /api/pull."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    insecure: bool | None = None
    username: str | None = None
    password: str | None = None


class OllamaEmbedRequest(Strict, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None


class OllamaEmbeddingsRequest(Strict, kw_only=True):
    """POST /api/embeddings, the former way to ask for one."""

    model: str
    prompt: str
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None


class OllamaUnsupportedRequest(msgspec.Struct):
    """A request of a route that is refused whatever it asks for."""


# Fields that are known and cannot be honoured: the values at which they ask for
# nothing, beside null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "template": ("",),
    "images": ([],),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
}
NEUTRAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1.0,),
    "typical_p": (1.0,),
    "vocab_only": (False,),
    "embedding_only": (False,),
}
