"""Finds calls in forms that are not the model's own: models write them all the same.

Text is held back only while it may still become a call of a tool that was offered.
"""

from __future__ import annotations

from rvllm_local.text.tools.form_beginnings import (
    CLOSINGS,
    FENCE,
    FENCE_OPENED,
    Brackets,
    may_begin,
)
from rvllm_local.text.tools.pieces import Piece
from rvllm_local.text.tools.reader import END, PieceReader, Reading
from rvllm_local.text.tools.signatures import Tools, offered_names
from rvllm_local.text.tools.whole_calls import Call, whole_calls

MAX_HELD = 1 << 16  # characters of a text that may be a call
_MOST_BEFORE_NAME = 256  # characters before the tool's name, if it is a call
_OPENINGS = tuple(CLOSINGS)
# Those that count at the start of a line alone come with them.
_LINE_OPENINGS = (*_OPENINGS, "{", "[", FENCE, "call:", "functions.")


class OtherForms(PieceReader):
    """`feed` and `finish` as a `ToolParser`'s, for what the model's own parser left over.

    A tag counts anywhere but behind a quote. JSON, Python or a fence without a tag
    counts at the start of a line, if nothing but calls follows to the end.
    """

    def __init__(self, tools: Tools, skips_fence: bool = False) -> None:
        """With `skips_fence`, a call has come whose fence is still open."""
        self._tools = tools
        self._names = tuple(sorted(offered_names(tools)))
        self._line_openings = (*_LINE_OPENINGS, *self._names)
        self._firsts = frozenset(opening[0] for opening in self._line_openings)
        self._skips_fence = skips_fence
        self._last = "\n"  # character of the content
        self.ends_before_call = False  # the model's own call comes next
        self.left_fence = False  # it stands in a fence, which was dropped
        super().__init__()

    def _parse(self) -> Reading[None]:
        if self._skips_fence:
            yield from self._skip_fence()
        while (opening := (yield from self._opening())) != END:
            yield from self._possible_call(opening)
        self._flush_space()

    def _skip_fence(self) -> Reading[None]:
        text = yield from self._next_solid()
        while text != FENCE and text and FENCE.startswith(text):
            char = yield from self._next()
            if char == END:
                break
            text += char
        if text != FENCE:
            self._put_back(text)

    def _opening(self) -> Reading[str]:
        """What may begin a call; text before it is content."""
        held = ""
        while (char := (yield from self._next())) != END:
            if not held and char not in self._firsts:
                self._say(char)
                continue
            held += char
            while held:
                openings = self._openings()
                if held in openings:
                    return held
                if any(opening.startswith(held) for opening in openings):
                    break
                self._say(held[0])
                held = held[1:]
        for rest in held:
            self._say(rest)
        return END

    def _openings(self) -> tuple[str, ...]:
        """What may begin a call here."""
        if self._last in "`'\"":
            return ()
        if self._last == "\n":
            return self._line_openings
        return _OPENINGS

    def _say(self, char: str) -> None:
        if not char.isspace() or char == "\n" or self._last != "\n":
            self._last = char
        self._content(char)

    def _possible_call(self, opening: str) -> Reading[None]:
        """Hold text until it is known what it is."""
        text = opening
        closing = CLOSINGS.get(opening, "")
        brackets = Brackets(self._names)
        for char in opening:
            brackets.add(char)
        is_possible = True
        while is_possible and not (closing and text.endswith(closing)):
            char = yield from self._next()
            if char == END:
                break
            text += char
            brackets.add(char)
            num_read = len(text) - len(opening)
            if num_read >= _MOST_BEFORE_NAME:
                is_possible = self._names_a_tool(text)
            elif not closing:
                is_possible = may_begin(text, self._names)
            if (brackets.are_left and not closing) or num_read > MAX_HELD:
                is_possible = False
        self._decide(text, is_possible)

    def _decide(self, text: str, is_possible: bool) -> None:
        """Write the calls that a text is.

        What is none is read once more, behind its first character.
        """
        is_fence = FENCE_OPENED.fullmatch(text) is not None
        if is_fence and self._ended and self.ends_before_call:
            self.left_fence = True
            return
        calls = None
        if is_possible and self._names_a_tool(text):
            calls = whole_calls(text, self._tools, self._is_cut)
        if calls is not None:
            self._write_calls(calls)
            return
        self._say(text[0])
        self._put_back(text[1:])

    def written(self, calls: list[Call]) -> list[Piece]:
        """The pieces of calls that were read elsewhere."""
        self._write_calls(calls)
        return self._drain()

    def _write_calls(self, calls: list[Call]) -> None:
        self._space = ""
        for name, arguments in calls:
            self._start_call(name)
            self._arguments(arguments)
            self._end_call()
            self._index += 1
        self._is_after_call = True
        self._last = "\n"

    def _names_a_tool(self, text: str) -> bool:
        return any(name in text for name in self._names)
