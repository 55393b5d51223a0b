"""Splits a model's thinking from its answer, by the tags around it. It knows no family and no tool call."""

from __future__ import annotations

from rvllm_local.text.tools.pieces import ThoughtClosed
from rvllm_local.text.tools.reader import END, MAX_HELD_SPACE, PieceReader, Reading

_QUOTES = frozenset("`\"'")


class ReasoningSplitter(PieceReader):
    """`feed` and `finish` as a `ToolParser`'s: `ReasoningDelta` inside the tags, `ContentDelta` after them.

    A block counts at the start of the output, or right after another one; later a tag is mere text, so that an
    answer may speak about tags. With `starts_inside` the template has already written the start tag; a model that
    writes it once more is forgiven. Blanks around the tags are dropped.

    A start tag may have lost its special token, so that its word alone is left: Gemma 4
    writes `thought` and a line break. An end tag between quotes does not end a thought.

    A first end tag without a start tag is dropped, unless it is quoted: `ThoughtClosed`
    tells where it was. What came before it is content, since it has been shown.

    Some models set the answer between tags as well, one pair of `answer_tags`. They are
    dropped: the opening one at the start of the content, and the closing one after it.
    """

    def __init__(
        self,
        start_tag: str,
        end_tag: str,
        starts_inside: bool,
        answer_tags: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._start_tag, self._end_tag = start_tag, end_tag
        self._starts = (start_tag, *_bare_starts(start_tag))
        self._answer_tags = dict(answer_tags)
        self._inside = starts_inside
        self.is_thinking = starts_inside  # a thought is open
        self._last = ""  # character of the content
        self._last_two = "  "  # of the thought
        self._was_thinking = False  # blanks after a thought are dropped, those of an answer without one are not
        super().__init__()

    def _parse(self) -> Reading[None]:
        inside = self._inside
        while True:
            text = yield from self._opening(keeps_blanks=not inside)
            if text not in self._starts and not inside:
                break
            held, inside = "" if text in self._starts else text, False
            self._space, self._is_started, self._was_thinking = "", False, True
            self.is_thinking = True
            if (yield from self._thought(self._replayed(held))) == END:
                return
            self.is_thinking = False
            self._space = ""
        yield from self._answer(text)
        self._flush_space()

    def _thought(self, held: str) -> Reading[str]:
        """A thought up to its end tag; one between quotes is a part of it.

        The quote before it must open one: a thought may end with what it closes.
        """
        while True:
            tag = yield from self._until((self._end_tag,), self._think, held=held)
            before, quote = self._last_two[0], self._last_two[1]
            opens = quote in _QUOTES and not before.isalnum() and before != quote
            if tag == END or not opens:
                return tag
            following = yield from self._next()
            if following != quote:
                self._put_back(following)
                return tag
            for char in tag + following:
                self._think(char)
            held = ""

    def _answer(self, text: str) -> Reading[None]:
        """Content, in which an end tag may tell that all before it was a thought."""
        text, closing = yield from self._unwrapped(text)
        if not self._was_thinking:
            every = (self._start_tag, self._end_tag, *closing)
            tag = yield from self._until(every, self._say, held=self._said(text, every))
            if tag == self._end_tag and self._last not in _QUOTES:
                self._space, self._was_thinking = "", True
                self._write(ThoughtClosed())
                tag = yield from self._opening(keeps_blanks=False)
            text = tag
        if text in closing:
            text, self._space, closing = "", "", ()
        for char in text:
            self._content(char)
        tag = yield from self._until(closing, self._content)
        if tag != END:
            self._space = ""
            yield from self._until((), self._content)

    def _unwrapped(self, text: str) -> Reading[tuple[str, tuple[str, ...]]]:
        """Nothing, and the tag that closes the answer, if its opening tag comes.

        Where none comes, what has been read of it.
        """
        while text and any(tag.startswith(text) for tag in self._answer_tags):
            if text in self._answer_tags:
                self._space = ""
                self._put_back((yield from self._next_solid()))
                return "", (self._answer_tags[text],)
            char = yield from self._next()
            if char == END:
                return ("" if self._is_cut else text), ()
            text += char
        return text, ()

    def _say(self, text: str) -> None:
        self._last = text
        self._content(text)

    def _said(self, text: str, tags: tuple[str, ...]) -> str:
        """Content that was read as if it were a tag; what could begin one is left."""
        while text and not any(tag.startswith(text) for tag in tags):
            self._say(text[0])
            text = text[1:]
        return text

    def _replayed(self, text: str) -> str:
        """Thinking that was read as if it were a tag; what of it could begin the end tag is left."""
        while text and not self._end_tag.startswith(text):
            self._think(text[0])
            text = text[1:]
        return text

    def _opening(self, keeps_blanks: bool) -> Reading[str]:
        """The start tag, or what came in its place; blanks before it are kept or dropped."""
        while (text := (yield from self._next())).isspace():
            if keeps_blanks and not self._was_thinking:
                self._content(text)
        while text not in self._starts and self._may_start(text):
            char = yield from self._next()
            if char == END:
                return "" if self._is_cut else text
            text += char
        return text

    def _may_start(self, text: str) -> bool:
        return bool(text) and any(tag.startswith(text) for tag in self._starts)

    def _think(self, text: str) -> None:
        """Reasoning, but for blanks at either end of it."""
        self._last_two = (self._last_two + text)[-2:]
        if text.isspace():
            if not self._is_started:
                return
            if len(self._space) < MAX_HELD_SPACE:
                self._space += text
                return
        text, self._space, self._is_started = self._space + text, "", True
        self._reasoning(text)


def _bare_starts(start_tag: str) -> tuple[str, ...]:
    """What is left of a start tag without its special token: a word on a line."""
    _, token, word = start_tag.rpartition(">")
    return (f"{word}\n",) if token and word else ()
