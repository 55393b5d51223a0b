"""The parser of a request with tools: the model's own form first, then every other one."""

from __future__ import annotations

from rvllm_local.text.tools.held_call import HeldCall
from rvllm_local.text.tools.other_forms import OtherForms
from rvllm_local.text.tools.pieces import (
    ContentDelta,
    Piece,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
    ToolParser,
)
from rvllm_local.text.tools.signatures import Tools, signatures_of
from rvllm_local.text.tools.whole_calls import whole_calls


class TolerantParser:
    """A `ToolParser` around the family's own.

    A call that its parser cannot read is tried in every other form, and so is content.
    Calls are numbered anew.
    """

    def __init__(self, family_parser: ToolParser, tools: Tools) -> None:
        self._family_parser, self._tools = family_parser, tools
        self._signatures = signatures_of(tools)
        self._others = OtherForms(tools)
        self._num_calls = 0  # that have ended, or failed
        self._call: HeldCall | None = None  # of the own parser
        self._is_cut = False  # a limit ended the output
        self._read: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        self._take(self._family_parser.feed(text))
        return self._drain()

    def finish(self, is_cut: bool = False) -> list[Piece]:
        """See `ToolParser.finish`."""
        self._is_cut = is_cut
        self._take(self._family_parser.finish(is_cut))
        self._add(self._others.finish(is_cut))
        return self._drain()

    def _drain(self) -> list[Piece]:
        read, self._read = self._read, []
        return read

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            match piece:
                case ContentDelta(text):
                    self._add(self._others.feed(text))
                case ToolCallStart():
                    self._end_content()
                    self._call = HeldCall(self._num_calls, piece, self._signatures)
                case ToolCallDelta(_, arguments) if self._call is not None:
                    self._read.extend(self._call.add(arguments))
                case ToolCallEnd() if self._call is not None:
                    self._end_call(*self._call.ended())
                case ToolCallFailed(_, raw, reason):
                    self._take_failed(raw, reason)
                case _:
                    self._read.append(piece)

    def _take_failed(self, raw: str, reason: str) -> None:
        """A call that its parser could not read.

        What is none in any form is shown: an answer without a word helps nobody.
        """
        call, self._call = self._call, None
        if call is not None and call.is_open:
            self._end_call(*call.failed(raw, reason))
        elif self._is_cut:
            self._end_call(ToolCallFailed(self._num_calls, raw, reason))
            return
        else:
            self._end_content()
            plain = call.with_plain_text(raw) if call is not None else None
            calls = [plain] if plain is not None else whole_calls(raw, self._tools)
            if calls is not None:
                self._add(self._others.written(calls))
                return
        if not self._is_cut:
            self._read.append(ContentDelta(raw))

    def _end_call(self, *pieces: Piece) -> None:
        self._read.extend(pieces)
        self._num_calls += 1
        self._call = None

    def _end_content(self) -> None:
        """What is held back is content: a call of the model's own follows."""
        self._others.ends_before_call = True
        self._add(self._others.finish())
        self._others = OtherForms(self._tools, self._others.left_fence)

    def _add(self, pieces: list[Piece]) -> None:
        """Pieces of the other forms, with calls counted on."""
        for piece in pieces:
            match piece:
                case ToolCallStart(_, call_id, name):
                    self._read.append(ToolCallStart(self._num_calls, call_id, name))
                case ToolCallDelta(_, arguments):
                    self._read.append(ToolCallDelta(self._num_calls, arguments))
                case ToolCallEnd():
                    self._end_call(ToolCallEnd(self._num_calls))
                case _:
                    self._read.append(piece)
