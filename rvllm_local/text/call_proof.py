"""Proves which syntax of tool calls a chat template writes: it is rendered, and read.

A template is shown a conversation with a call; the family whose parser gives back just
this call is the model's. Words in a template prove nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable

from rvllm_local.errors import TemplateLimitError
from rvllm_local.text.call_form import (
    ARGUMENTS,
    CALL_IDS,
    NAME,
    QUESTION,
    TOOL,
    VALUE,
    CallForm,
    RendersCalls,
    find_call_form,
    question,
    rendered,
    text_of_call,
)
from rvllm_local.text.tools import FAMILIES, Piece, parser_for
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    ToolCallDelta,
    ToolCallFailed,
    ToolCallStart,
)
from rvllm_local.text.turn_ends import KNOWN_ENDS

# Bare JSON is tried last: other families' calls could be read as such.
_BARE = ("json", "llama3", "llama4")


def written_calls(tokenizer: RendersCalls) -> list[str]:
    """What the template writes for an assistant's call, with ids of several kinds.

    Nothing if it shows none.
    """
    form = find_call_form(tokenizer)
    if form is None:
        return []
    with contextlib.suppress(TemplateLimitError):
        return _written_calls(tokenizer, form)
    return []


def _written_calls(tokenizer: RendersCalls, form: CallForm) -> list[str]:
    prompt = rendered(tokenizer, [question()], add_generation_prompt=True)
    calls = []
    for call_id in CALL_IDS:
        text = text_of_call(tokenizer, form, call_id)
        if text is None:
            continue
        if prompt and text.startswith(prompt):
            call = text[len(prompt) :]
        else:
            call = text.rpartition(QUESTION)[2]
        calls.append(_up_to_turn_end(call, tokenizer.eos_token))
    return calls


def proven_family(calls: Iterable[str], candidates: Iterable[str]) -> str | None:
    """The family that reads a written call, the candidates first; None if none does."""
    others = [family for family in FAMILIES if family not in _BARE]
    families = list(dict.fromkeys((*candidates, *others, *_BARE)))
    for call in calls:
        for family in families:
            if _is_read(family, call):
                return family
    return None


def _is_read(family: str, call: str) -> bool:
    """True if the family's parser finds the call, and nothing that looks like one."""
    parser = parser_for(family, [TOOL])
    pieces: list[Piece] = [*parser.feed(call.lstrip()), *parser.finish()]
    names = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
    deltas = [piece.arguments for piece in pieces if isinstance(piece, ToolCallDelta)]
    has_failed = any(isinstance(piece, ToolCallFailed) for piece in pieces)
    said = "".join(piece.text for piece in pieces if isinstance(piece, ContentDelta))
    if names != [NAME] or has_failed or VALUE in said:
        return False
    value = json.loads("".join(deltas))
    return bool(value == ARGUMENTS)


def _up_to_turn_end(call: str, eos: str | None) -> str:
    """The call without the turn's end and what follows it."""
    after = call.rfind(VALUE)
    ends = [call.find(text, after) for text in (*KNOWN_ENDS, eos) if text]
    positions = [end for end in ends if end >= 0]
    return call[: min(positions)] if positions else call
