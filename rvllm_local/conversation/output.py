"""Reads a whole output: thinking first, then content and tool calls.

It joins the parsers and owns no syntax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text.families import CHANNEL_FAMILIES, OutputStyle
from rvllm_local.text.reasoning import ReasoningSplitter
from rvllm_local.text.thought_calls import ThoughtCalls
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
    tolerant_parser_for,
)
from rvllm_local.types import FinishReason

_BLANK_LINE = "\n\n"
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
        answer_tags: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """With `drops_space`, a space before the first word is the tokenizer's own."""
        self._drops_space = drops_space
        self._family, self._given_tools = tool_family, tools
        self._has_called = False
        self._has_said = False  # there is content
        self._is_parted = False  # an end tag parts it from what may follow
        self._is_opened_by_template = reasoning_starts_inside
        self._thought: list[str] = []  # text of thoughts, where it may hold calls
        self._tools = self._new_tools()
        self._thought_calls = ThoughtCalls(tool_family or "", tools)
        self._reasoning: ReasoningSplitter | None = None
        if reasoning_start is not None and reasoning_end is not None:
            self._reasoning = ReasoningSplitter(
                reasoning_start, reasoning_end, reasoning_starts_inside, answer_tags
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

        Without `tools` nothing is read as a call, but for messages in channels.
        """
        if starts_inside is None:
            starts_inside = style.reasoning_starts_inside
        reads_calls = bool(tools) or style.tool_family in CHANNEL_FAMILIES
        return cls(
            style.tool_family if reads_calls else None,
            reasoning_start=style.reasoning_start,
            reasoning_end=style.reasoning_end,
            reasoning_starts_inside=starts_inside,
            tools=tools,
            drops_space=drops_space,
            answer_tags=style.answer_tags,
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
            if not is_cut and self._reasoning.is_thinking:
                pieces.extend(self._parted(self._thought_calls.calls()))
            pieces.extend(self._rest_of_thought())
        if self._tools is not None:
            pieces.extend(self._parted(self._tools.finish(is_cut)))
        if self._reasoning is not None and not is_cut and not self._has_said:
            pieces.extend(self._calls_in_thought())
            if self._reasoning.is_thinking:
                pieces.extend(self._answer_in_thought())
        return pieces

    def _answer_in_thought(self) -> list[Piece]:
        """The whole output as content, where the model never closed a thought.

        Its template had opened the thought, and the model answered at once. It has been
        shown as a thought already; but many clients read the content alone.
        """
        text = "".join(self._thought).strip()
        if not self._is_opened_by_template or self._has_called or not text:
            return []
        return [ContentDelta(text)]

    def _calls_in_thought(self) -> list[Piece]:
        """Calls in a thought behind which nothing follows: they were meant.

        They have been shown as a part of the thought already.
        """
        if self._family is None or self._has_called:
            return []
        parser = parser_for(self._family, self._given_tools)
        text = "".join(self._thought)
        pieces = [*parser.feed(text), *parser.finish()]
        if any(isinstance(piece, ToolCallFailed) for piece in pieces):
            return []
        return self._parted(
            [each for each in pieces if isinstance(each, _PARTS_OF_CALLS)]
        )

    def _rest_of_thought(self) -> list[Piece]:
        """What was held back of a thought, since it might have been a call."""
        text = self._thought_calls.rest()
        return [ReasoningDelta(text)] if text else []

    def _new_tools(self) -> ToolParser | None:
        if self._family is None:
            return None
        return tolerant_parser_for(self._family, self._given_tools)

    def _read_calls(self, pieces: Sequence[Piece]) -> list[Piece]:
        read: list[Piece] = []
        for piece in pieces:
            if not isinstance(piece, ReasoningDelta):
                read.extend(self._rest_of_thought())
            match piece:
                case ContentDelta(text) if self._tools is not None:
                    read.extend(self._parted(self._tools.feed(text)))
                case ContentDelta():
                    read.extend(self._parted([piece]))
                case ThoughtClosed():
                    read.extend(self._closed())
                case ReasoningDelta(text):
                    self._thought.append(text)
                    shown = self._thought_calls.feed(text)
                    if shown:
                        read.append(ReasoningDelta(shown))
        return read

    def _closed(self) -> list[Piece]:
        """An end tag without its start; what follows is read as a new output.

        Calls before it were meant.
        """
        held: list[Piece] = []
        if self._tools is not None and not self._has_called:
            ended = self._tools.finish()
            self._tools = self._new_tools()
            # A call that had only begun was a part of a thought.
            texts = [piece for piece in ended if isinstance(piece, ContentDelta)]
            held = self._parted(texts)
        self._is_parted = self._has_said
        return held

    def _parted(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces, with a blank line where an end tag stood between content."""
        parted: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, _CALLS):
                self._has_called = True
            if not isinstance(piece, ContentDelta):
                parted.append(piece)
            elif piece.text:
                blank = _BLANK_LINE if self._is_parted else ""
                parted.append(ContentDelta(blank + piece.text))
                self._has_said, self._is_parted = True, False
        return parted
