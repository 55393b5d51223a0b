"""Counts open choices on the caller's side of an engine, so that too many are refused at once."""

from __future__ import annotations

import threading

from rvllm_local.errors import QueueFullError
from rvllm_local.types import EventSink, StreamEvent

_RETRY_AFTER_S = 1.0


class AdmissionGate:
    """At most `max_open` choices between their start and their last event. Safe from any thread."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self.num_open = 0

    def admit(self, num_choices: int, sink: EventSink) -> EventSink:
        """Count the choices in; the returned sink counts them out again. Raises `QueueFullError`."""
        with self._lock:
            if self.num_open + num_choices > self._max_open:
                raise QueueFullError(
                    f"{self.num_open} requests are open and at most {self._max_open} may be; try again later, or raise "
                    "max_waiting",
                    _RETRY_AFTER_S,
                )
            self.num_open += num_choices

        def counted(event: StreamEvent) -> None:
            if event.finish_reason is not None:
                self.release(1)
            sink(event)

        return counted

    def release(self, num_choices: int) -> None:
        """Count choices out that never reached the engine."""
        with self._lock:
            self.num_open -= num_choices
