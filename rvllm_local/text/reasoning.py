"""Splits a model's thinking from its answer, by the tags around it. It knows no family and no tool call."""

from __future__ import annotations

from rvllm_local.text.tools.pieces import Piece
from rvllm_local.text.tools.reader import END, PieceReader, Reading


class ReasoningSplitter(PieceReader):
    """`feed` and `finish` as a `ToolParser`'s: `ReasoningDelta` inside the tags, `ContentDelta` after them.

    A block counts at the start of the output, or right after another one; later a tag is mere text, so that an
    answer may speak about tags. With `starts_inside` the template has already written the start tag; a model that
    writes it once more is forgiven. Blanks around the tags are dropped.
    """

    def __init__(self, start_tag: str, end_tag: str, starts_inside: bool) -> None:
        self._start_tag, self._end_tag = start_tag, end_tag
        self._inside = starts_inside
        super().__init__()

    def _parse(self) -> Reading[None]:
        inside = self._inside
        while True:
            tag = yield from self._opening()
            if tag != self._start_tag and not inside:
                break
            inside = False
            if tag != self._start_tag:
                self._think(tag)
            found = yield from self._until((self._end_tag,), self._think)
            self._space = ""
            if found == END:
                return
        for char in tag:
            self._content(char)
        while (char := (yield from self._next())) != END:
            self._content(char)
        self._flush_space()

    def _opening(self) -> Reading[str]:
        """The start tag, or what came in its place; blanks before it are dropped."""
        text = yield from self._next_solid()
        while text != self._start_tag and self._start_tag.startswith(text):
            char = yield from self._next()
            if char == END:
                break
            text += char
        return text

    def _think(self, text: str) -> None:
        """Reasoning, but for blanks at either end of it."""
        if text.isspace():
            self._space += text
            return
        text, self._space = self._space + text, ""
        self._reasoning(text)


def splitter_pieces(splitter: ReasoningSplitter, text: str) -> list[Piece]:
    """All pieces of a whole text."""
    return [*splitter.feed(text), *splitter.finish()]
