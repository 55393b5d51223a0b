"""Ends Python code in a thread from outside: an exception that is raised in it, at most once, with nothing left behind.

CPython 3.11 sets a flag of the whole process with `PyThreadState_SetAsyncExc`, even where it takes an exception back,
and clears it only when some thread raises one. While it stands, every call in every thread is slower, and under
`sys.setprofile` none returns. What was sent is therefore received, never taken back.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

_PATIENCE = 10


class Interrupt:
    """Raises `error` in the thread that made it, when `fire` is called before `close`.

    `fire` may be called by any thread, `close` by its own thread, as often as they like.
    """

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._is_fired = self._is_closed = False

    def fire(self) -> None:
        """Raise in the thread; nothing when that was done, or when the thread is past it."""
        with self._lock:
            if not self._is_fired and not self._is_closed:
                self._is_fired = True
                self._send()

    def close(self) -> None:
        """From here on nothing is raised: what is still on its way arrives in here."""
        try:
            with self._lock:
                self._is_closed = True
            if self._is_fired:
                self._send()  # in place of one that has not come, or anew where it has
                while True:
                    pass
        except self._error:
            pass

    def _send(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread), ctypes.py_object(self._error)
        )


@contextlib.contextmanager
def deadline(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` in the calling thread when code in the block computes for longer.

    Time that this process did not get from a busy machine is given back, up to
    `_PATIENCE` times as much in all.
    """
    interrupt, done = Interrupt(error), threading.Event()
    arguments = (interrupt, seconds, done)
    threading.Thread(target=_fire_when_used_up, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        interrupt.close()


def _fire_when_used_up(
    interrupt: Interrupt,
    seconds: float,
    done: threading.Event,
) -> None:
    computed, began = time.process_time(), time.monotonic()
    remaining = seconds
    while not done.wait(remaining):
        used = time.process_time() - computed
        if used >= seconds or time.monotonic() - began >= _PATIENCE * seconds:
            interrupt.fire()
            return
        remaining = max(seconds - used, 0.01)
