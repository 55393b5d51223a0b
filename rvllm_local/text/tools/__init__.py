"""Incremental parsers of tool calls, one a family: text in, content and calls out.

They know no model, no tokenizer and no API; special tokens that are tags must reach them as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text import tags
from rvllm_local.text.tools.bare import JSONParser, Llama3Parser
from rvllm_local.text.tools.gemma import Gemma4Parser, GemmaParser
from rvllm_local.text.tools.harmony import HarmonyParser
from rvllm_local.text.tools.parameters import (
    GLMParser,
    MiniMaxParser,
    Qwen3CoderParser,
    SeedParser,
)
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
)
from rvllm_local.text.tools.pythonic import PythonicParser, TaggedPythonicParser
from rvllm_local.text.tools.tagged import (
    DeepSeekParser,
    FunctionTagParser,
    HermesParser,
    KimiParser,
    ListParser,
    MistralParser,
)

__all__ = [
    "FAMILIES",
    "ContentDelta",
    "Piece",
    "ReasoningDelta",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallFailed",
    "ToolCallStart",
    "ToolParser",
    "parser_for",
]

Tools = Sequence[Mapping[str, Any]]
_PARSERS: Mapping[str, Callable[[Tools], ToolParser]] = {
    "hermes": lambda tools: HermesParser(),
    "qwen3_coder": Qwen3CoderParser,
    "seed": SeedParser,
    "minimax": MiniMaxParser,
    "glm": GLMParser,
    "llama3": lambda tools: Llama3Parser(),
    "pythonic": lambda tools: PythonicParser(),
    "lfm2": lambda tools: TaggedPythonicParser(),
    "mistral": lambda tools: MistralParser(),
    "mistral_args": lambda tools: MistralParser(),
    "nemotron": lambda tools: ListParser(tags.NEMOTRON),
    "phi": lambda tools: ListParser(tags.PHI),
    "gemma": lambda tools: GemmaParser(),
    "gemma4": lambda tools: Gemma4Parser(),
    "deepseek": lambda tools: DeepSeekParser(),
    "deepseek_v31": lambda tools: DeepSeekParser(),
    "kimi": lambda tools: KimiParser(),
    "function_tag": lambda tools: FunctionTagParser(),
    "harmony": lambda tools: HarmonyParser(),
    "json": lambda tools: JSONParser(),
}
FAMILIES = tuple(_PARSERS)


def parser_for(family: str, tools: Sequence[Mapping[str, Any]] = ()) -> ToolParser:
    """A fresh parser for one output. Raises `ParameterError` for a family that nobody knows.

    `tools`, in OpenAI's shape, tell the families that write arguments as text which of them are
    strings; without it, what reads as JSON is JSON.
    """
    if family not in _PARSERS:
        raise ParameterError(
            "family",
            f"tool call family {family!r} is unknown; use one of {', '.join(FAMILIES)}",
        )
    return _PARSERS[family](tools)
