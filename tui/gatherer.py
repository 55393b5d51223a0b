"""Joins the words of a reply on their way to the session, so that few events come of
many parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rvllm_local.history.types import ToolCall
from rvllm_local.tui.events import Event, ReplyBegan, ReplyGrew, UsageReceived
from rvllm_local.tui.reply_parts import (
    ReplyEnd,
    ReplyPart,
    ReplyStart,
    ReplyText,
    ReplyUsage,
)

# How often the words that came are handed on; painting costs by the flush.
FLUSH_S = 1 / 8


class ReplyGatherer:
    """Words on their way to the session: at once, but at most eight times a second."""

    def __init__(
        self,
        reply_id: str,
        dispatch: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.finish = "stop"
        self._id, self._dispatch, self._clock = reply_id, dispatch, clock
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._chunks, self._at = 0, 0.0
        self._flushed_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def take(self, part: ReplyPart) -> None:
        """A part of the stream has come."""
        match part:
            case ReplyStart(request_id):
                self._dispatch(ReplyBegan(self._id, request_id))
            case ReplyEnd(reason):
                self.finish = reason
            case ReplyUsage(prompt, output, cached, accepted, rejected, speed):
                self.flush()
                counts = (prompt, output, cached, accepted, rejected, speed)
                self._dispatch(UsageReceived(self._id, *counts))
            case ReplyText():
                self._take_text(part)

    def _take_text(self, part: ReplyText) -> None:
        if any(self._reasoning) and part.text:
            self.flush()  # so that the end of the reasoning gets its own time
        self._text.append(part.text)
        self._reasoning.append(part.reasoning)
        self._calls += part.tool_calls
        self._chunks += 1
        self._at = self._clock()
        if self._flushed_at is None:
            self.flush()
        elif self._timer is None:
            # A batch of words comes in one go: the timer fires when it is read.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._flushed_at + FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand on what has come."""
        self.close()
        if self._chunks:
            self._flushed_at = asyncio.get_running_loop().time()
            texts = ("".join(self._text), "".join(self._reasoning))
            delta = ReplyGrew(
                self._id,
                self._at,
                *texts,
                tuple(self._calls),
                self._chunks,
            )
            self._text, self._reasoning, self._calls, self._chunks = [], [], [], 0
            self._dispatch(delta)

    def close(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
