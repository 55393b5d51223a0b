"""What a model's output is made of once it is read: content, reasoning and tool calls, in order.

Plain values; they know no family and no API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer that the user reads."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtClosed:
    """An end tag without its start: what came before it stays content.

    Nobody can take back what a stream has sent, and a whole answer reads as a stream.
    `OutputParser` starts anew behind it and shows it to nobody.
    """


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call whose name is known. `index` counts the calls of one output from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the JSON text of a call's arguments."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete: its deltas, joined, are the JSON text of one object."""

    index: int


@dataclass(frozen=True, slots=True)
class ToolCallFailed:
    """A call that could not be read, or was cut off; no `ToolCallEnd` follows.

    `raw` is the call as the model wrote it, tags included, cut at `MAX_CALL_CHARS`. It is the consumer's choice to
    show it, to report it or to drop it; it never comes as content as well. If the name was known, a `ToolCallStart`
    with this index has come before, and its deltas are not valid JSON. `reason` says what was wrong, in one line
    that quotes nothing of the output.
    """

    index: int
    raw: str
    reason: str


Piece = (
    ContentDelta
    | ReasoningDelta
    | ThoughtClosed
    | ToolCallStart
    | ToolCallDelta
    | ToolCallEnd
    | ToolCallFailed
)


class ToolParser(Protocol):
    """Reads one output as it comes. Any split of the text gives the same pieces once deltas are joined."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes; never raises, whatever the model wrote."""

    def finish(self, is_cut: bool = False) -> list[Piece]:
        """What was held back, and the failure of a call that was cut off.

        Call it once, at the end. With `is_cut`, a limit ended the output and not the
        model: what could have become a tag is dropped, since nobody wants half a tag.
        """
