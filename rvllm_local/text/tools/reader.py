"""The machinery under every output parser: characters go in one by one, pieces come out.

A parser is a generator that asks for its next character, so no split of the text can matter. It knows no family.
"""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from rvllm_local.text.tools.pieces import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
)

MAX_CALL_CHARS = 1 << 20  # a call may be this long, from its first tag to its last
MAX_HELD_SPACE = (
    64  # blank characters are held back this far, because a call may follow
)
_STRAY = "}],;`"  # behind a call that is complete
END = ""  # what a parser reads after the last character, as often as it asks

T = TypeVar("T")
Reading = Generator[None, str, T]


class MalformedCallError(Exception):
    """A call breaks its family's syntax; the message says how. Never leaves the parsers."""


class PieceReader(ABC):
    """Base of the parsers: subclasses write `_parse`, which must return once it has read `END`."""

    def __init__(self, new_call_id: Callable[[], str] | None = None) -> None:
        self._new_call_id = new_call_id or (lambda: f"call_{secrets.token_hex(12)}")
        self._pieces: list[Piece] = []
        self._raw: list[str] | None = None  # the call that is being read
        self._index = 0  # of the call that is being read, or the next one
        self._is_started = False  # the call's name is out
        self._is_after_call = False
        self._space = ""
        self._again = ""  # what is read once more
        self._ended = False
        self._is_cut = False  # the end is a limit's, not the model's
        self._reading = self._parse()
        next(self._reading)

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        if not self._ended:
            for char in text:
                self._reading.send(char)
        return self._drain()

    def finish(self, is_cut: bool = False) -> list[Piece]:
        """See `ToolParser.finish`."""
        self._is_cut = is_cut
        if not self._ended:
            with contextlib.suppress(StopIteration):
                self._reading.send(END)
        return self._drain()

    @abstractmethod
    def _parse(self) -> Reading[None]:
        """Read the whole output."""

    def _drain(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # Reading.

    def _next(self) -> Reading[str]:
        """The next character, or `END`."""
        if self._again:
            char, self._again = self._again[0], self._again[1:]
            return char
        if self._ended:
            return END
        char = yield
        if char == END:
            self._ended = True
        elif self._raw is not None:
            self._raw.append(char)
            if len(self._raw) > MAX_CALL_CHARS:
                raise MalformedCallError(
                    f"the call is longer than {MAX_CALL_CHARS} characters"
                )
        return char

    def _put_back(self, text: str) -> None:
        self._again = text + self._again

    def _next_solid(self) -> Reading[str]:
        """The next character that is not blank."""
        while (char := (yield from self._next())).isspace():
            pass
        return char

    def _expect(self, literal: str) -> Reading[None]:
        """Read exactly `literal`."""
        for expected in literal:
            char = yield from self._next()
            if char == END:
                raise MalformedCallError("it was cut off")
            if char != expected:
                raise MalformedCallError(f"{literal!r} was expected")

    def _expect_solid(self, literal: str) -> Reading[None]:
        """Read `literal`, and blanks before it."""
        self._put_back((yield from self._next_solid()))
        yield from self._expect(literal)

    def _text_until(
        self, tags: Sequence[str], limit: int, may_end: bool = False
    ) -> Reading[tuple[str, str]]:
        """The text before one of `tags`, and the tag.

        Raises if none comes, or more than `limit` characters do. With `may_end`, the
        model's own end of the output stands for a tag that it forgot.
        """
        parts: list[str] = []

        def take(text: str) -> None:
            if len(parts) >= limit:
                raise MalformedCallError(
                    f"a part of it is longer than {limit} characters"
                )
            parts.append(text)

        tag = yield from self._until(tags, take)
        if tag == END and (self._is_cut or not may_end):
            raise MalformedCallError("it was cut off")
        return "".join(parts), tag

    def _until(
        self,
        tags: Sequence[str],
        take: Callable[[str], None],
        held: str = "",
        is_shown: bool = True,
    ) -> Reading[str]:
        """Hand text to `take` up to one of `tags`, which is returned.

        `END` if none came. No tag may begin another. Only what could still become a
        tag is held back; `held` has been read already. Where the text is shown, half a
        tag that a limit cut is dropped.
        """
        if held and held in tags:
            return held
        while (char := (yield from self._next())) != END:
            held += char
            while held and not any(tag.startswith(held) for tag in tags):
                take(held[0])
                held = held[1:]
            if held in tags:
                return held
        if not (self._is_cut and is_shown):
            for rest in held:
                take(rest)
        return END

    # Writing.

    def _content(self, text: str) -> None:
        """Content; blanks wait until it is known that no call follows them."""
        if text.isspace() and len(self._space) < MAX_HELD_SPACE:
            self._space += text
            return
        text, self._space, self._is_after_call = self._space + text, "", False
        self._write(ContentDelta(text))

    def _reasoning(self, text: str) -> None:
        self._write(ReasoningDelta(text))

    def _write(self, piece: Piece) -> None:
        """Add a piece, joined to the one before it where both are the same kind of text."""
        last = self._pieces[-1] if self._pieces else None
        match last, piece:
            case ContentDelta(before), ContentDelta(text):
                self._pieces[-1] = ContentDelta(before + text)
            case ReasoningDelta(before), ReasoningDelta(text):
                self._pieces[-1] = ReasoningDelta(before + text)
            case ToolCallDelta(index, before), ToolCallDelta(_, text):
                self._pieces[-1] = ToolCallDelta(index, before + text)
            case _:
                self._pieces.append(piece)

    def _flush_space(self) -> None:
        """At the end of the output: blanks are content if they belong to no call."""
        if self._space and not self._is_after_call:
            self._write(ContentDelta(self._space))
        self._space = ""

    # Calls.

    def _tagged_calls(
        self,
        opening: str,
        closing: str,
        strays: Sequence[str],
        body: Callable[[], Reading[None]],
    ) -> Reading[None]:
        """Read to the end: a call after each `opening`, content elsewhere.

        `strays` are tags without meaning here; blanks before any tag are dropped.
        """
        every = (opening, closing, *strays)
        while (tag := (yield from self._until(every, self._content))) != END:
            self._space = ""
            if tag == opening:
                yield from self._call(tag, body(), (closing,))
        self._flush_space()

    def _call(
        self,
        opening: str,
        body: Reading[None],
        closings: Sequence[str],
        bare: bool = False,
    ) -> Reading[None]:
        """Read one call, whose tag `opening` is already read; `body` reads it all, a closing tag included.

        If it fails, everything up to the next of `closings` belongs to the failure. A `bare` call, which only looks
        like one until its arguments begin, is content if it fails before.
        """
        space, self._space = self._space, ""
        self._raw = list(opening)
        self._is_started = False
        try:
            yield from body
        except MalformedCallError as error:
            is_half = self._ended and self._is_cut and self._begins_call()
            if bare and not self._is_started and not is_half:
                self._space = space
                self._give_up_call()
                return
            yield from self._fail(str(error), closings)
        finally:
            self._raw = None
        self._index += 1
        self._is_after_call = True

    def _begins_call(self) -> bool:
        """True if a bare call that was cut before its arguments still looks like one."""
        return True

    def _give_up_call(self) -> None:
        """What was read is content after all."""
        self._again = ""
        for char in self._raw or ():
            self._content(char)

    def _call_closed(self, closing: str, others: Sequence[str] = ()) -> Reading[None]:
        """Read what ends a complete call: its closing tag, or the output's end.

        Models forget the tag: one of `others` ends the call as well, and is read again.
        A bracket or a fence too many is dropped.
        """
        endings = (closing, *others)
        text = yield from self._next_solid()
        while text and text in _STRAY and not closing.startswith(text):
            text = yield from self._next_solid()
        while text and text not in endings:
            if not any(tag.startswith(text) for tag in endings):
                raise MalformedCallError("its end is followed by something else")
            char = yield from self._next()
            if char == END:
                return
            text += char
        if text != closing:
            self._put_back(text)

    def _fail(self, reason: str, closings: Sequence[str]) -> Reading[None]:
        raw = "".join(self._raw or ())
        self._raw, self._again = None, ""
        # The closing tag may have begun, or even come, when the call failed.
        sizes = (
            size
            for tag in closings
            for size in range(1, len(tag) + 1)
            if raw.endswith(tag[:size])
        )
        size = max(sizes, default=0)
        kept = list(raw[: len(raw) - size])

        def keep(text: str) -> None:
            if len(kept) < MAX_CALL_CHARS:
                kept.extend(text)

        held = raw[len(raw) - size :]
        keep((yield from self._until(closings, keep, held, is_shown=False)))
        self._write(ToolCallFailed(self._index, "".join(kept), reason))

    def _start_call(self, name: str, call_id: str | None = None) -> None:
        if not name:
            raise MalformedCallError("the call has no name")
        self._is_started = True
        call_id = call_id or self._new_call_id()
        self._write(ToolCallStart(self._index, call_id, name))

    def _arguments(self, text: str) -> None:
        self._write(ToolCallDelta(self._index, text))

    def _end_call(self) -> None:
        self._write(ToolCallEnd(self._index))
