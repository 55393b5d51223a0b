"""The consumer's end of a request: an iterator of events that crosses from the engine's thread."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator

from rvllm_local.errors import EngineClosedError, error_of
from rvllm_local.types import FinishReason, StreamEvent


class TokenStream(Iterator[StreamEvent]):
    """Yields the events of all choices of one request and ends after the last choice has ended.

    `close()`, or leaving a `with` block, cancels what is still running. Raises what
    ended a
    choice: an `EngineError` if the engine failed while the request was open, a `ParameterError` if it cannot be served.
    """

    def __init__(
        self, request_id: str, num_choices: int, cancel: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._open = num_choices
        self._events: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()

    def put(self, event: StreamEvent) -> None:
        """Called by the engine's thread."""
        self._events.put(event)

    def __next__(self) -> StreamEvent:
        if self._open == 0:
            raise StopIteration
        event = self._events.get()
        if event.finish_reason is not None:
            self._open -= 1
        if event.finish_reason is FinishReason.ERROR:
            raise error_of(
                event.error_kind,
                event.error or "the engine failed",
                event.error_parameter,
            )
        return event

    def close(self) -> None:
        """Cancel the request if it is still running.

        Nothing is left to cancel in a closed engine.
        """
        if self._open:
            with contextlib.suppress(EngineClosedError):
                self._cancel(self.request_id)

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
