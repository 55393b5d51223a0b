"""Incremental parsers of tool calls, one a family: text in, content and calls out.

They know no model, no tokenizer and no API; special tokens that are tags must reach them as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text import tags
from rvllm_local.text.tools.bare import JSONParser, Llama3Parser, Llama4Parser
from rvllm_local.text.tools.channels import KimiK3Parser
from rvllm_local.text.tools.framed import PLAMO, SOLAR, FramedParser
from rvllm_local.text.tools.functionary import FunctionaryParser, RecipientParser
from rvllm_local.text.tools.gemma import Gemma4Parser, GemmaParser
from rvllm_local.text.tools.harmony import HarmonyParser
from rvllm_local.text.tools.invoked import (
    DOTS,
    GCML,
    MINICPM,
    MINIMAX,
    DSMLParser,
    InvokeParser,
    MuseParser,
)
from rvllm_local.text.tools.keyed import KeyedParser
from rvllm_local.text.tools.nested import MiniMaxM3Parser
from rvllm_local.text.tools.parameters import (
    GLMParser,
    K2Parser,
    LongCatParser,
    Qwen3CoderParser,
    SeedParser,
)
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ThoughtClosed,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
)
from rvllm_local.text.tools.pythonic import PythonicParser, TaggedPythonicParser
from rvllm_local.text.tools.signatures import offered_names
from rvllm_local.text.tools.tagged import (
    DeepSeekParser,
    FunctionTagParser,
    HermesParser,
    KimiParser,
    ListParser,
    MistralParser,
)
from rvllm_local.text.tools.tolerant import TolerantParser

__all__ = [
    "FAMILIES",
    "ContentDelta",
    "Piece",
    "ReasoningDelta",
    "ThoughtClosed",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallFailed",
    "ToolCallStart",
    "ToolParser",
    "parser_for",
    "tolerant_parser_for",
]

Tools = Sequence[Mapping[str, Any]]
_PARSERS: Mapping[str, Callable[[Tools], ToolParser]] = {
    "hermes": lambda tools: HermesParser(),
    "qwen3_coder": Qwen3CoderParser,
    "seed": SeedParser,
    "minimax": lambda tools: InvokeParser(MINIMAX, tools),
    "minimax_m3": MiniMaxM3Parser,
    "deepseek_v32": DSMLParser,
    "minicpm": lambda tools: InvokeParser(MINICPM, tools),
    "muse": MuseParser,
    "longcat": LongCatParser,
    "glm": GLMParser,
    "k2_horizon": K2Parser,
    "llama3": Llama3Parser,
    "llama4": Llama4Parser,
    "pythonic": PythonicParser,
    "lfm2": lambda tools: TaggedPythonicParser(tags.LFM_CALLS, tools),
    "olmo": lambda tools: TaggedPythonicParser(tags.OLMO_CALLS, tools),
    "mistral": lambda tools: MistralParser(),
    "mistral_args": lambda tools: MistralParser(),
    "nemotron": lambda tools: ListParser(tags.NEMOTRON),
    "phi": lambda tools: ListParser(tags.PHI),
    "cohere": lambda tools: ListParser(tags.COHERE_ACTION, tags.COHERE_RESPONSE),
    "jamba": lambda tools: ListParser(tags.JAMBA),
    "internlm": lambda tools: ListParser(tags.INTERNLM, (tags.INTERNLM_ACTION,)),
    "granite_code": lambda tools: ListParser(tags.GRANITE_CODE),
    "gigachat": lambda tools: ListParser((tags.GIGACHAT, tags.GIGACHAT_SEP)),
    "gigachat_tags": lambda tools: InvokeParser(GCML, tools),
    "dots": lambda tools: InvokeParser(DOTS, tools),
    "apertus": lambda tools: KeyedParser(),
    "solar": lambda tools: FramedParser(SOLAR),
    "plamo": lambda tools: FramedParser(PLAMO),
    "gemma": GemmaParser,
    "gemma4": Gemma4Parser,
    "deepseek": lambda tools: DeepSeekParser(),
    "deepseek_v31": lambda tools: DeepSeekParser(),
    "kimi": lambda tools: KimiParser(),
    "kimi_k3": KimiK3Parser,
    "functionary": lambda tools: FunctionaryParser(),
    "functionary_v2": lambda tools: RecipientParser(),
    "function_tag": lambda tools: FunctionTagParser(),
    "harmony": HarmonyParser,
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


def tolerant_parser_for(family: str, tools: Tools) -> ToolParser:
    """The same, for a request: calls of its tools are read in other forms, too."""
    parser = parser_for(family, tools)
    if offered_names(tools):
        return TolerantParser(parser, tools)
    return parser
