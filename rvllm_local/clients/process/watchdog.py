"""Judges whether an engine's process hangs, by its signs of life and its steps."""

from __future__ import annotations

import time

from rvllm_local.cpu_wait import CpuWait


class Watchdog:
    """What was last heard of one process. Times are monotonic seconds."""

    def __init__(self, pid: int) -> None:
        self._waits = CpuWait(pid)
        # `_moved` is its last step, or when it last had nothing to do.
        self.last_sign = self.last_step = self._moved = time.monotonic()

    def note_sign(self) -> None:
        """It has sent something."""
        self.last_sign = time.monotonic()

    def note_step(self) -> None:
        """Its engine has made a step."""
        self.last_step = self._moved = time.monotonic()

    def expect(self) -> None:
        """It gets something to do now: count from here."""
        self._moved = time.monotonic()

    def forgive(self) -> None:
        """Count from now: this process was stopped itself."""
        self.last_sign = self._moved = time.monotonic()

    def stalled_for(
        self, limit_s: float, silence_s: float, is_busy: bool
    ) -> str | None:
        """What is wrong with a process that hangs; None if nothing is.

        It hangs without a sign of life for `silence_s`, or with something to do and no
        step for `limit_s`.
        """
        now = time.monotonic()
        if not is_busy:
            self._moved = now
        self._discount_waiting(now, min(limit_s, silence_s))
        if now - self.last_sign > silence_s:
            return f"gave no sign of life for {silence_s:g} s"
        if now - self._moved > limit_s:
            return f"had work and made no step for {limit_s:g} s"
        return None

    def _discount_waiting(self, now: float, limit_s: float) -> None:
        """A process that is ready and gets no processor does not hang."""
        if now - min(self.last_sign, self._moved) < limit_s / 4:
            self._waits.forget()
            return
        waited = self._waits.since_last()
        self.last_sign = min(now, self.last_sign + waited)
        self._moved = min(now, self._moved + waited)
