"""Judges whether the other side of a connection has fallen silent."""

from __future__ import annotations

import threading
import time

from rvllm_local.cpu_wait import CpuWait

LOADING_S = 120.0  # MLX holds the interpreter while it waits for the ring
SERVING_S = 3.0
TICK_S = 0.25  # between two looks
_OWN_PAUSE_S = 1.0


class Silence:
    """How long nothing was heard. Time in which this process stood still is no silence.

    Neither is time in which the other process, if it is on this machine, was ready to
    run and got no processor.
    """

    def __init__(self, pid: int | None) -> None:
        """`pid` is the other side's process, where that is on this machine."""
        self._waits = None if pid is None else CpuWait(pid)
        self._lock = threading.Lock()
        self._looked = self._heard = time.monotonic()
        self.limit_s = LOADING_S

    def note_sign(self) -> None:
        """Something was heard."""
        with self._lock:
            self._heard = time.monotonic()

    def is_too_long(self) -> bool:
        """True if nothing was heard for longer than the limit. Look every `TICK_S`."""
        with self._lock:
            now = time.monotonic()
            pause = now - self._looked
            self._looked = now
            if pause > _OWN_PAUSE_S:
                self._heard += pause
            self._discount_waiting(now)
            self._heard = min(self._heard, now)
            return now - self._heard > self.limit_s

    def _discount_waiting(self, now: float) -> None:
        if self._waits is None:
            return
        if now - self._heard < self.limit_s / 4:
            self._waits.forget()
        else:
            self._heard += self._waits.since_last()
