"""How many prompt tokens a step may prefill, so that rows that are answering are not held up for long.

Measures the speed of prefill as it runs; knows nothing of requests but whether they are decoding.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from rvllm_local.engine.sequence import Sequence

_SMOOTHING = 0.3  # weight of the newest measurement
_SMALLEST = 16  # tokens; smaller chunks cost more than they save


class Pace:
    """Turns a time target into tokens. `target_s` is how long prefill may delay the decoding rows of a step."""

    def __init__(self, *, prefill_chunk: int, target_s: float = 0.1) -> None:
        self._prefill_chunk = prefill_chunk
        self._target_s = target_s
        self._tokens_per_s: float | None = None

    def record(self, num_tokens: int, seconds: float) -> None:
        """Take in one measured prefill call. Short ones say little about speed and are left out."""
        if num_tokens < _SMALLEST or seconds <= 0:
            return
        speed = num_tokens / seconds
        known = self._tokens_per_s
        self._tokens_per_s = speed if known is None else known + _SMOOTHING * (speed - known)

    def prefill_tokens(self, running: Rows[Sequence]) -> int:
        """The prefill budget of the next step: a whole chunk when nobody is kept waiting by it."""
        if self._tokens_per_s is None or not any(sequence.is_decoding for sequence in running):
            return self._prefill_chunk
        paced = int(self._tokens_per_s * self._target_s)
        return max(_SMALLEST, min(self._prefill_chunk, paced))
