"""The engine's events of a chat, read: answer, thinking and calls apart, for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rvllm_local.clients.stream import TokenStream
from rvllm_local.conversation.output import OutputParser
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from rvllm_local.types import ChatEvent, StreamEvent, ToolCall


@dataclass(slots=True)
class _OpenCall:
    """A call whose arguments are still coming."""

    start: ToolCallStart
    arguments: list[str] = field(default_factory=list)

    def ended(self) -> ToolCall:
        return ToolCall(self.start.call_id, self.start.name, "".join(self.arguments))


def read_chat(
    stream: TokenStream,
    num_choices: int,
    new_parser: Callable[[], OutputParser],
    left_out: tuple[str, ...] = (),
) -> Iterator[ChatEvent]:
    """The events of a chat; leaving the loop early cancels the request.

    `left_out` are the parts of its schemas that are not enforced.
    """
    reader = _ChatReader(num_choices, new_parser)
    with stream:
        for event in stream:
            read = reader.read(event)
            if read.finish_reason is not None:
                read.left_out = left_out
            yield read


class _ChatReader:
    """Reads the events of one request; each choice has a parser of its own."""

    def __init__(
        self, num_choices: int, new_parser: Callable[[], OutputParser]
    ) -> None:
        self._parsers = [new_parser() for _ in range(num_choices)]
        self._open_calls: list[_OpenCall | None] = [None] * num_choices

    def read(self, event: StreamEvent) -> ChatEvent:
        """The same event with its text parsed. Call it in the order of the events."""
        parser = self._parsers[event.index]
        pieces = parser.feed(event.text)
        if event.finish_reason is not None:
            pieces = [*pieces, *parser.finish(event.finish_reason)]
        text, thought = _texts(pieces)
        return ChatEvent(
            text,
            event.token_ids,
            event.finish_reason,
            event.logprobs,
            event.index,
            event.cached_tokens,
            event.error,
            event.stop_string,
            event.error_parameter,
            event.error_kind,
            reasoning=thought,
            tool_calls=tuple(self._completed_calls(event.index, pieces)),
        )

    def _completed_calls(self, index: int, pieces: Sequence[Piece]) -> list[ToolCall]:
        """The calls that end among `pieces`; one that failed never does."""
        calls = []
        for piece in pieces:
            open_call = self._open_calls[index]
            match piece:
                case ToolCallStart():
                    self._open_calls[index] = _OpenCall(piece)
                case ToolCallDelta() if open_call is not None:
                    open_call.arguments.append(piece.arguments)
                case ToolCallEnd() if open_call is not None:
                    calls.append(open_call.ended())
        return calls


def _texts(pieces: Sequence[Piece]) -> tuple[str, str]:
    """The answer and the thinking among pieces."""
    text = thought = ""
    for piece in pieces:
        match piece:
            case ContentDelta():
                text += piece.text
            case ReasoningDelta():
                thought += piece.text
    return text, thought
