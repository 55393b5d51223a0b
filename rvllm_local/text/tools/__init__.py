"""Incremental parsers of tool calls, one a family: text in, content and calls out.

They know no model, no tokenizer and no API; special tokens that are tags must reach them as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.tools.bare import JSONParser, Llama3Parser
from rvllm_local.text.tools.gemma import GemmaParser
from rvllm_local.text.tools.harmony import HarmonyParser
from rvllm_local.text.tools.parameters import GLMParser, Qwen3CoderParser
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
from rvllm_local.text.tools.tagged import DeepSeekParser, HermesParser, MistralParser

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

_PARSERS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], ToolParser]] = {
    "hermes": lambda tools: HermesParser(),
    "qwen3_coder": Qwen3CoderParser,
    "glm": GLMParser,
    "llama3": lambda tools: Llama3Parser(),
    "mistral": lambda tools: MistralParser(),
    "mistral_args": lambda tools: MistralParser(),
    "gemma": lambda tools: GemmaParser(),
    "deepseek": lambda tools: DeepSeekParser(),
    "deepseek_v31": lambda tools: DeepSeekParser(),
    "harmony": lambda tools: HarmonyParser(),
    "json": lambda tools: JSONParser(),
}
FAMILIES = tuple(_PARSERS)


def parser_for(family: str, tools: Sequence[Mapping[str, Any]] = ()) -> ToolParser:
    """A fresh parser for one output. Raises `ParameterError` for a family that nobody knows.

    `tools`, in OpenAI's shape, tell the families that write arguments as text (qwen3_coder, glm) which of them are
    strings; without it, what reads as JSON is JSON.
    """
    if family not in _PARSERS:
        raise ParameterError(
            "family",
            f"tool call family {family!r} is unknown; use one of {', '.join(FAMILIES)}",
        )
    return _PARSERS[family](tools)
