"""Compiles grammars in threads, each with a limit on its time of a processor.

A late thread is left behind; its fuel ends it soon after.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from rvllm_local.errors import GrammarError, QueueFullError

T = TypeVar("T")

COMPILE_SECONDS = 1.5
MAX_COMPILING = 4  # threads that compile at once, overdue ones included
# An ordinary grammar takes milliseconds, and may wait for a processor that others have.
_WAIT_FACTOR = 20
_LOOK_EVERY_S = 0.1
_OF_ONE_THREAD = 6  # in the number of a thread's clock


class TimedCompilation:
    """Runs one compiler's work. Several threads may use it at once."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_COMPILING)

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises what it raises, `GrammarError` if it takes too long or panics, and
        `QueueFullError` if too many compile.
        """
        if not self._slots.acquire(timeout=COMPILE_SECONDS):
            raise QueueFullError(
                "too many grammars are being compiled; try again later", 1.0
            )
        done: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put(work())
            except Exception as error:  # handed over to the waiting thread
                done.put(error)
            # A panic in the library must not end the engine's process.
            except BaseException as error:
                kind = type(error).__name__
                words = f"the grammar makes its compiler fail ({kind})"
                done.put(GrammarError(words))
            finally:
                self._slots.release()

        thread = threading.Thread(target=run, name="grammar", daemon=True)
        thread.start()
        result = _wait(thread, done)
        if isinstance(result, Exception):
            raise result
        return result


def _wait(
    thread: threading.Thread, done: queue.SimpleQueue[T | Exception]
) -> T | Exception:
    began = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=min(_LOOK_EVERY_S, COMPILE_SECONDS))
        if _is_late(thread, time.monotonic() - began):
            return GrammarError(
                f"the grammar takes longer than {COMPILE_SECONDS} s to compile"
            )


def _is_late(thread: threading.Thread, elapsed_s: float) -> bool:
    """Whether the thread had its time; by the clock where the system tells no other."""
    if elapsed_s < COMPILE_SECONDS:
        return False
    tid = thread.native_id
    if sys.platform != "linux" or tid is None:
        return True
    if elapsed_s >= COMPILE_SECONDS * _WAIT_FACTOR:
        return True
    try:
        return time.clock_gettime((~tid << 3) | _OF_ONE_THREAD) >= COMPILE_SECONDS
    except OSError:  # it has just ended: its result is there
        return False
