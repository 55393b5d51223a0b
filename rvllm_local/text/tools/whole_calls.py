"""Reads a whole text as calls of tools that were offered, in whatever form it has.

The names prove it: a text that calls anything else, or says anything else, is no call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from rvllm_local.text import tags
from rvllm_local.text.tools.gemma import Gemma4Parser
from rvllm_local.text.tools.invoked import MINICPM, MINIMAX, InvokeParser, InvokeWords
from rvllm_local.text.tools.keyed import KeyedParser
from rvllm_local.text.tools.parameters import (
    GLMParser,
    K2Parser,
    Qwen3CoderParser,
)
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    Piece,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    ToolParser,
)
from rvllm_local.text.tools.pythonic import TaggedPythonicParser
from rvllm_local.text.tools.signatures import (
    Tools,
    offered_name,
    offered_names,
    signatures_of,
    unwrapped,
)
from rvllm_local.text.tools.tagged import HermesParser, KimiParser, MistralParser

Call = tuple[str, str]  # a tool's name, and its arguments as JSON

# Tags around calls, whose inside tells what they are.
FRAMES = (
    tags.HERMES,
    tags.GRANITE_CODE,
    tags.JAMBA,
    ("<calls>", "</calls>"),
    ("<tools>", "</tools>"),
    ("<tool>", "</tool>"),
    ("<functions>", "</functions>"),
    tags.NEMOTRON,
    tags.OLMO_CALLS,
    tags.LFM_CALLS,
    tags.PYTHON_BLOCK,
    tags.GEMMA4_CALL,
    tags.PHI,
    tags.MINIMAX,
)
_FENCED = re.compile(r"```[\w-]*\s*\n?(.*?)\s*(?:```)?", re.DOTALL)
_LISTED = re.compile(r'\{\s*"(?:tool_calls|calls)"\s*:\s*(\[.*\])\s*\}', re.DOTALL)
# Llama 3's tag, as it is spelled when it goes wrong; and Qwen's without its own tag.
_FUNCTION = re.compile(
    r"<function[=>]\s*([\w.-]+)[>,\s]*(\{.*\})\s*>?\s*(?:</?function>)?", re.DOTALL
)
_NAMELESS = re.compile(r"([\w.-]+)\s*(<parameter=.*)", re.DOTALL)
_MISQUOTED = re.compile(r'"(name|function|tool)="')  # `"name="f"`
_DOUBLED_MARK = re.compile(r"<(/?)｜｜DSML｜｜ ?")  # DeepSeek 4.1's, gone wrong
_PLAIN_INVOKE = InvokeWords("function", "parameter")
_BLANKS_AND_JOINTS = " \t\r\n;,"
_MOST_FRAMES = 3  # around one another

# How a bare text is put for each parser: what stands before it and behind it.
_Reader = tuple[Callable[[Tools], ToolParser], str, str]
_READERS: tuple[_Reader, ...] = (
    (lambda tools: HermesParser(), *tags.HERMES),
    (Qwen3CoderParser, "", ""),
    (GLMParser, *tags.HERMES),
    (K2Parser, "", ""),
    (lambda tools: TaggedPythonicParser(tags.LFM_CALLS, tools), *tags.LFM_CALLS),
    (lambda tools: InvokeParser(MINIMAX, tools), "", ""),
    (lambda tools: InvokeParser(_PLAIN_INVOKE, tools), "", ""),
    (lambda tools: InvokeParser(MINICPM, tools), "", ""),
    (lambda tools: MistralParser(), tags.MISTRAL_CALLS, ""),
    (lambda tools: KimiParser(), *tags.KIMI_CALL),
    (Gemma4Parser, *tags.GEMMA4_CALL),
    (lambda tools: KeyedParser(), f"{tags.APERTUS[0]}[", f"]{tags.APERTUS[1]}"),
)


def whole_calls(text: str, tools: Tools, is_cut: bool = False) -> list[Call] | None:
    """The calls that a text is, or None; with `is_cut` nothing is added to it."""
    for bare in _bare_texts(text):
        flat = _flat_call(bare, tools)
        if flat is not None:
            return [flat]
        for new_parser, opening, closing in _READERS:
            parser = new_parser(tools)
            pieces = parser.feed(opening + bare + closing)
            pieces += parser.finish(is_cut)
            calls = _calls_in(pieces, tools)
            if calls:
                return calls
    return None


def _flat_call(text: str, tools: Tools) -> Call | None:
    """`{"name": "f", "key": value}`: arguments beside the name, if they are the tool's.

    Or the text of its only argument, in the place of an object.
    """
    try:
        value = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.pop("name", None)
    if not isinstance(name, str):
        return None
    tool = offered_name(name, offered_names(tools))
    if tool is None or not value:
        return None
    signature = signatures_of(tools)[tool]
    arguments = unwrapped(value, signature)
    if not arguments.keys() <= signature.properties.keys():
        return None
    return tool, json.dumps(arguments, ensure_ascii=False)


def _bare_texts(text: str) -> Iterator[str]:
    """The text, and what is left of it without the frames around it."""
    text = _MISQUOTED.sub(r'"\1": "', text.strip())
    text = _DOUBLED_MARK.sub(r"<\1", text)
    for _ in range(_MOST_FRAMES):
        yield text
        inside = _without_frame(text)
        if inside == text:
            return
        text = inside.lstrip(_BLANKS_AND_JOINTS)


def _without_frame(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    if fenced is not None:
        return fenced[1].strip()
    for opening, closing in FRAMES:
        if text.startswith(opening):
            return text.removeprefix(opening).removesuffix(closing).strip()
    for opening in (tags.MISTRAL_CALLS, tags.PYTHON_TAG, "functools"):
        if text.startswith(opening):
            return text.removeprefix(opening).strip()
    function = _FUNCTION.fullmatch(text)
    if function is not None:
        return function[1] + function[2]
    nameless = _NAMELESS.fullmatch(text)
    if nameless is not None:
        return f"{tags.FUNCTION[0]}{nameless[1]}>{nameless[2]}"
    listed = _LISTED.fullmatch(text)
    if listed is not None:
        return listed[1]
    if text.startswith('"'):
        return _unquoted(text)
    return text


def _unquoted(text: str) -> str:
    """The text in a JSON string."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value.strip() if isinstance(value, str) else text


def _calls_in(pieces: Sequence[Piece], tools: Tools) -> list[Call] | None:
    """The calls, if there is nothing but calls of tools that were offered."""
    names = offered_names(tools)
    calls: list[Call] = []
    name: str | None = None
    arguments = ""
    for piece in pieces:
        match piece:
            case ToolCallStart():
                name = offered_name(piece.name, names)
                arguments = ""
            case ToolCallDelta():
                arguments += piece.arguments
            case ToolCallEnd() if name is not None:
                calls.append((name, _unwrapped_text(name, arguments, tools)))
            case ContentDelta(text) if text.isspace():
                pass
            case _:
                return None
    return calls


def _unwrapped_text(name: str, text: str, tools: Tools) -> str:
    """Arguments as JSON, without a key too many around them."""
    arguments = json.loads(text)
    inside = unwrapped(arguments, signatures_of(tools)[name])
    return text if inside is arguments else json.dumps(inside, ensure_ascii=False)
