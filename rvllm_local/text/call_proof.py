"""Proves which syntax of tool calls a chat template writes: it is rendered, and read.

A template is shown a conversation with a call; the family whose parser gives back just
this call is the model's. Words in a template prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rvllm_local.errors import RvllmError
from rvllm_local.text.tools import FAMILIES, Piece, parser_for
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    ToolCallDelta,
    ToolCallFailed,
    ToolCallStart,
)
from rvllm_local.text.turn_ends import KNOWN_ENDS

# Texts that no template writes itself.
_QUESTION, _NAME, _KEY, _VALUE = "q7zask", "q7zlook", "q7zcity", "q7zOslo"
_ARGUMENTS = {_KEY: _VALUE}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
    },
}
_CALL_ID = "q7zcall01"  # of the length that some templates demand
_CALL = {
    "id": _CALL_ID,
    "type": "function",
    "function": {"name": _NAME, "arguments": _ARGUMENTS},
}
_CALLED: list[Mapping[str, Any]] = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
]
_RESULT: Mapping[str, Any] = {
    "role": "tool",
    "tool_call_id": _CALL_ID,
    "name": _NAME,
    "content": ".",
}
# Bare JSON is tried last: other families' calls could be read as such.
_BARE = ("json", "llama3")


class RendersCalls(Protocol):
    """What is asked of a tokenizer."""

    eos_token: str | None

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], **template: Any
    ) -> str:
        """The text that the chat template makes."""


def written_call(tokenizer: RendersCalls) -> str | None:
    """What the template writes for an assistant's call; None if it shows none."""
    for messages in (_CALLED, [*_CALLED, _RESULT]):
        text = _rendered(tokenizer, messages, add_generation_prompt=False)
        if text is not None and _VALUE in text.rpartition(_QUESTION)[2]:
            break
    else:
        return None
    prompt = _rendered(tokenizer, _CALLED[:1], add_generation_prompt=True)
    if prompt and text.startswith(prompt):
        call = text[len(prompt) :]
    else:
        call = text.rpartition(_QUESTION)[2]
    return _up_to_turn_end(call, tokenizer.eos_token)


def proven_family(call: str, candidates: Iterable[str]) -> str | None:
    """The family that reads the written call, the candidates first; None if none does."""
    others = [family for family in FAMILIES if family not in _BARE]
    for family in dict.fromkeys((*candidates, *others, *_BARE)):
        if _is_read(family, call):
            return family
    return None


def _is_read(family: str, call: str) -> bool:
    """True if the family's parser finds the call, and nothing that looks like one."""
    parser = parser_for(family, [_TOOL])
    pieces: list[Piece] = [*parser.feed(call.lstrip()), *parser.finish()]
    names = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
    deltas = [piece.arguments for piece in pieces if isinstance(piece, ToolCallDelta)]
    has_failed = any(isinstance(piece, ToolCallFailed) for piece in pieces)
    said = "".join(piece.text for piece in pieces if isinstance(piece, ContentDelta))
    if names != [_NAME] or has_failed or _VALUE in said:
        return False
    value = json.loads("".join(deltas))
    return bool(value == _ARGUMENTS)


def _rendered(
    tokenizer: RendersCalls, messages: Sequence[Mapping[str, Any]], **template: Any
) -> str | None:
    try:
        return tokenizer.render_chat(messages, tools=[_TOOL], **template)
    except RvllmError:
        return None


def _up_to_turn_end(call: str, eos: str | None) -> str:
    """The call without the turn's end and what follows it."""
    after = call.rfind(_VALUE)
    ends = [call.find(text, after) for text in (*KNOWN_ENDS, eos) if text]
    positions = [end for end in ends if end >= 0]
    return call[: min(positions)] if positions else call
