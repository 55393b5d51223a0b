"""Reads a whole output: thinking first, then content and tool calls.

It joins the parsers and owns no syntax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.families import OutputStyle
from rvllm_local.text.reasoning import ReasoningSplitter
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ThoughtClosed,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
    parser_for,
)
from rvllm_local.types import FinishReason

_CALLS = (ToolCallStart, ToolCallFailed)
_PARTS_OF_CALLS = (ToolCallStart, ToolCallDelta, ToolCallEnd)


class OutputParser:
    """`feed` the text of one output, `finish` at its end; nothing comes twice.

    With `tool_family` None, the syntax of calls is content: the request had no tools.
    Without `reasoning_start` or `reasoning_end`, there is no thinking to split off.
    """

    def __init__(
        self,
        tool_family: str | None,
        *,
        reasoning_start: str | None = None,
        reasoning_end: str | None = None,
        reasoning_starts_inside: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        drops_space: bool = False,
    ) -> None:
        """With `drops_space`, a space before the first word is the tokenizer's own."""
        self._drops_space = drops_space
        self._family, self._given_tools = tool_family, tools
        self._has_called = False
        self._thought: list[str] = []  # text of thoughts, where it may hold calls
        self._tools = self._new_tools()
        self._reasoning: ReasoningSplitter | None = None
        if reasoning_start is not None and reasoning_end is not None:
            self._reasoning = ReasoningSplitter(
                reasoning_start, reasoning_end, reasoning_starts_inside
            )

    @classmethod
    def for_style(
        cls,
        style: OutputStyle,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        starts_inside: bool | None = None,
        drops_space: bool = False,
    ) -> OutputParser:
        """The parser of a model's style.

        Without `tools` nothing is read as a call, but for harmony's messages.
        """
        if starts_inside is None:
            starts_inside = style.reasoning_starts_inside
        reads_calls = bool(tools) or style.tool_family == "harmony"
        return cls(
            style.tool_family if reads_calls else None,
            reasoning_start=style.reasoning_start,
            reasoning_end=style.reasoning_end,
            reasoning_starts_inside=starts_inside,
            tools=tools,
            drops_space=drops_space,
        )

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes; never raises, whatever the model wrote."""
        if self._drops_space and text:
            self._drops_space = False
            text = text.removeprefix(" ")
        if self._reasoning is None:
            return self._read_calls([ContentDelta(text)])
        return self._read_calls(self._reasoning.feed(text))

    def finish(self, reason: FinishReason = FinishReason.STOP) -> list[Piece]:
        """What was held back; call it once, at the end of the output.

        Half a tag that something else than the model cut is never shown.
        """
        is_cut = reason is not FinishReason.STOP
        pieces: list[Piece] = []
        if self._reasoning is not None:
            pieces = self._read_calls(self._reasoning.finish(is_cut))
        if self._tools is not None:
            pieces.extend(self._tools.finish(is_cut))
        if self._reasoning is not None and self._reasoning.is_thinking and not is_cut:
            pieces.extend(self._calls_in_thought())
        return pieces

    def _calls_in_thought(self) -> list[Piece]:
        """Calls in a thought that the model ended with its turn: they were meant.

        They have been shown as a part of the thought already.
        """
        parser = self._new_tools()
        if parser is None or self._has_called:
            return []
        text = "".join(self._thought)
        pieces = [*parser.feed(text), *parser.finish()]
        if any(isinstance(piece, ToolCallFailed) for piece in pieces):
            return []
        return [piece for piece in pieces if isinstance(piece, _PARTS_OF_CALLS)]

    def _new_tools(self) -> ToolParser | None:
        if self._family is None:
            return None
        return parser_for(self._family, self._given_tools)

    def _read_calls(self, pieces: Sequence[Piece]) -> list[Piece]:
        if self._tools is None:
            return [piece for piece in pieces if piece != ContentDelta("")]
        read: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, ContentDelta):
                read.extend(self._tools.feed(piece.text))
            elif isinstance(piece, ThoughtClosed):
                read.extend(self._closed(read))
            else:
                read.append(piece)
            if isinstance(piece, ReasoningDelta):
                self._thought.append(piece.text)
        if any(isinstance(piece, _CALLS) for piece in read):
            self._has_called = True
        return read

    def _closed(self, read: Sequence[Piece]) -> list[Piece]:
        """The end of a thought that came as content; calls in it were meant."""
        is_calling = any(isinstance(piece, _CALLS) for piece in read)
        if self._tools is None or self._has_called or is_calling:
            return []
        held = self._tools.finish()
        self._tools = self._new_tools()
        # A call that had only begun was a part of the thought.
        texts = [piece for piece in held if isinstance(piece, ContentDelta)]
        return [*texts, ThoughtClosed()]
