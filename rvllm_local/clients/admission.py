"""Counts open choices on the caller's side of an engine.

So too many are refused at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from rvllm_local.errors import EngineError, QueueFullError
from rvllm_local.types import EventSink, StreamEvent

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0


class AdmissionGate:
    """At most `max_open` choices between their start and their last event.

    Safe from any thread.
    """

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self.num_open = 0

    def admit(
        self,
        num_choices: int,
        sink: EventSink,
        abandon: Callable[[], None],
    ) -> EventSink:
        """Count the choices in. The returned sink counts them out again.

        A sink that raises harms nobody else: it hears no more, and `abandon` is called
        to end its request. Raises `QueueFullError`.
        """
        with self._lock:
            if self.num_open + num_choices > self._max_open:
                raise QueueFullError(
                    f"{self.num_open} requests are open and at most {self._max_open} "
                    "may be; try again later, or raise max_waiting",
                    _RETRY_AFTER_S,
                )
            self.num_open += num_choices

        has_failed = threading.Event()

        def counted(event: StreamEvent) -> None:
            if event.finish_reason is not None:
                self.release(1)
            if has_failed.is_set():
                return
            try:
                sink(event)
            except Exception as error:
                has_failed.set()
                logger.warning(
                    "the consumer of a request failed with %s; it is cancelled",
                    type(error).__name__,
                )
                with contextlib.suppress(EngineError):
                    abandon()

        return counted

    def release(self, num_choices: int) -> None:
        """Count choices out that never reached the engine."""
        with self._lock:
            self.num_open -= num_choices
