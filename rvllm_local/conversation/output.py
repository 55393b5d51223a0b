"""Reads a whole output: thinking first, then content and tool calls. It joins the parsers and owns no syntax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.families import OutputStyle
from rvllm_local.text.reasoning import ReasoningSplitter
from rvllm_local.text.tools import ContentDelta, Piece, ToolParser, parser_for


class OutputParser:
    """`feed` the text of one output, `finish` at its end; the pieces come in order and nothing comes twice.

    With `tool_family` None, tool call syntax is content (the request offered no tools). With `reasoning_start`
    or `reasoning_end` None, there is no thinking to split off.
    """

    def __init__(
        self,
        tool_family: str | None,
        *,
        reasoning_start: str | None = None,
        reasoning_end: str | None = None,
        reasoning_starts_inside: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._tools: ToolParser | None = (
            None if tool_family is None else parser_for(tool_family, tools)
        )
        self._reasoning = (
            None
            if reasoning_start is None or reasoning_end is None
            else ReasoningSplitter(
                reasoning_start, reasoning_end, reasoning_starts_inside
            )
        )

    @classmethod
    def for_style(
        cls,
        style: OutputStyle,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        starts_inside: bool | None = None,
    ) -> OutputParser:
        """The parser of a model's style; without `tools`, nothing is read as a call, but for harmony's messages."""
        return cls(
            style.tool_family if tools or style.tool_family == "harmony" else None,
            reasoning_start=style.reasoning_start,
            reasoning_end=style.reasoning_end,
            reasoning_starts_inside=style.reasoning_starts_inside
            if starts_inside is None
            else starts_inside,
            tools=tools,
        )

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes; never raises, whatever the model wrote."""
        return self._read_calls(
            [ContentDelta(text)]
            if self._reasoning is None
            else self._reasoning.feed(text)
        )

    def finish(self) -> list[Piece]:
        """What was held back; call it once, at the end of the output."""
        rest = [] if self._reasoning is None else self._reasoning.finish()
        return [
            *self._read_calls(rest),
            *(self._tools.finish() if self._tools is not None else []),
        ]

    def _read_calls(self, pieces: Sequence[Piece]) -> list[Piece]:
        if self._tools is None:
            return [piece for piece in pieces if piece != ContentDelta("")]
        read: list[Piece] = []
        for piece in pieces:
            read.extend(
                self._tools.feed(piece.text)
                if isinstance(piece, ContentDelta)
                else [piece]
            )
        return read
