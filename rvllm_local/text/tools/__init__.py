"""Incremental parsers of tool calls, one a family: text in, content and calls out.

They know no model, no tokenizer and no API; special tokens that are tags must reach them as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
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
from rvllm_local.text.tools.tagged import HermesParser

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

FAMILIES = ("hermes",)


def parser_for(family: str, tools: Sequence[Mapping[str, Any]] = ()) -> ToolParser:
    """A fresh parser for one output. Raises `ParameterError` for a family that nobody knows.

    `tools`, in OpenAI's shape, tell the families that write arguments as text (qwen3_coder, glm) which of them are
    strings; without it, what reads as JSON is JSON.
    """
    if family not in FAMILIES:
        raise ParameterError("family", f"tool call family {family!r} is unknown; use one of {', '.join(FAMILIES)}")
    return HermesParser()
