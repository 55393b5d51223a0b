"""Holds back the end of a thought that may be a call: models forget to close thoughts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
    tolerant_parser_for,
)
from rvllm_local.text.tools.signatures import offered_names

# What a call begins with, where it proves itself. Families without one are left out.
_OPENINGS: Mapping[str, tuple[str, ...]] = {
    "hermes": tags.HERMES[:1],
    "qwen3_coder": (tags.HERMES[0], tags.FUNCTION[0]),
    "glm": tags.HERMES[:1],
    "seed": tags.SEED[:1],
    "minimax": tags.MINIMAX[:1],
    "minimax_m3": (tags.MINIMAX_M3,),
    "deepseek": (tags.DEEPSEEK_CALLS[0], tags.DEEPSEEK_CALL[0]),
    "deepseek_v31": (tags.DEEPSEEK_CALLS[0], tags.DEEPSEEK_CALL[0]),
    "deepseek_v32": (f"<{tags.DSML}",),
    "gemma4": tags.GEMMA4_CALL[:1],
    "kimi": (tags.KIMI_CALLS[0], tags.KIMI_CALL[0]),
    "kimi_k3": (f"{tags.KIMI_K3_OPEN}tools", f"{tags.KIMI_K3_OPEN}call"),
    "k2_horizon": (tags.IFM_CALLS[0], tags.IFM_CALL[0]),
    "lfm2": tags.LFM_CALLS[:1],
    "longcat": tags.LONGCAT[:1],
    "mistral": (tags.MISTRAL_CALLS,),
    "mistral_args": (tags.MISTRAL_CALLS,),
    "muse": tags.ATEM[:1],
    "nemotron": tags.NEMOTRON[:1],
    "phi": tags.PHI[:1],
    "cohere": tags.COHERE_ACTION[:1],
    "jamba": tags.JAMBA[:1],
    "apertus": tags.APERTUS[:1],
    "olmo": tags.OLMO_CALLS[:1],
}
_MOST_BEFORE_NAME = 256  # characters between an opening and the tool's name
_MOST_HELD = 1 << 16


class ThoughtCalls:
    """`feed` a thought, and show what comes back.

    From a call's opening on, the text is held back while nothing but calls follows it.
    If the thought is closed, it was a part of it: `rest` gives it back. If the output
    ends instead, `calls` are what it was.
    """

    def __init__(self, family: str, tools: Sequence[Mapping[str, Any]]) -> None:
        self._family, self._tools = family, tools
        self._names = offered_names(tools)
        self._openings = _OPENINGS.get(family, ())
        self._held = ""
        self._parser: ToolParser | None = None  # of the call that may have begun
        self._pieces: list[Piece] = []
        self._says_more = False  # one of the pieces is no part of a call

    def feed(self, text: str) -> str:
        """What of the thought so far is none of a call."""
        if not self._openings:
            return text
        shown = ""
        self._held += text
        if self._parser is not None:
            self._read(text)
            if self._is_call():
                return ""
            shown = self._give_up()
        while (opening := self._first_opening()) is not None:
            start = self._held.index(opening)
            before = self._held[:start].rstrip()
            shown += before
            self._held = self._held[len(before) :]
            self._parser = tolerant_parser_for(self._family, self._tools)
            self._pieces, self._says_more = [], False
            self._read(self._held.lstrip())
            if self._is_call():
                return shown
            shown += self._give_up()
        size = len(self._held) - self._num_doubtful()
        shown, self._held = shown + self._held[:size], self._held[size:]
        return shown

    def rest(self) -> str:
        """What is held back, as text."""
        text, self._held, self._parser = self._held, "", None
        return text

    def calls(self) -> list[Piece]:
        """The calls at the thought's end, if there are any; what is left is text."""
        if self._parser is None:
            return []
        self._keep(self._parser.finish())
        has_call = any(isinstance(piece, ToolCallStart) for piece in self._pieces)
        if self._says_more or not has_call:
            return []
        self._held, self._parser = "", None
        return [each for each in self._pieces if not isinstance(each, ContentDelta)]

    def _read(self, text: str) -> None:
        if self._parser is not None:
            self._keep(self._parser.feed(text))

    def _keep(self, pieces: Sequence[Piece]) -> None:
        self._pieces.extend(pieces)
        self._says_more = self._says_more or any(map(_says_more, pieces))

    def _is_call(self) -> bool:
        """True while what is held may be nothing but calls."""
        size = len(self._held)
        if size > _MOST_HELD or self._says_more:
            return False
        begin = self._held[:_MOST_BEFORE_NAME]
        return size < _MOST_BEFORE_NAME or any(name in begin for name in self._names)

    def _give_up(self) -> str:
        """The opening, and what stands before it, as text."""
        opening = self._first_opening() or ""
        size = self._held.find(opening) + len(opening)
        text, self._held, self._parser = self._held[:size], self._held[size:], None
        return text

    def _first_opening(self) -> str | None:
        positions = []
        for opening in self._openings:
            position = self._held.find(opening)
            if position >= 0:
                positions.append((position, opening))
        return min(positions)[1] if positions else None

    def _num_doubtful(self) -> int:
        """Length of an ending that could begin an opening, with blanks before it."""
        solid = len(self._held)
        for opening in self._openings:
            for size in range(1, len(opening)):
                if self._held.endswith(opening[:size]):
                    solid = min(solid, len(self._held) - size)
        return len(self._held) - len(self._held[:solid].rstrip())


def _says_more(piece: Piece) -> bool:
    if isinstance(piece, ContentDelta):
        return not piece.text.isspace()
    return isinstance(piece, ToolCallFailed)
