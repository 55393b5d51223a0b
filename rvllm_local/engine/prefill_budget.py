"""How many prompt tokens a step may prefill, so that answers are not held up for long.

Measures the speed of prefill and of decode steps as they run. Knows of requests only
whether they are decoding.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

from rvllm_local.engine.sequence import Sequence

_SMOOTHING = 0.3  # weight of the newest measurement
_SMALLEST = 12  # tokens; smaller chunks cost more than they save
# Tokens. The even parts of a block have fewer than `_SMALLEST`, and must count.
_LEAST_MEASURED = 8
_UNKNOWN_DECODE_S = 0.05
# Without a target, prefill may take so many times the decode step beside it. The base
# is for one long prompt beside a few answers, which nobody should be held up by. Each
# further prompt that waits adds twice as much, and each decoding row above `_FEW` adds
# half as much: a burst of requests then soon decodes together.
_SLOWDOWN = 0.8
_MOST_SLOWDOWN = 10.0
_FEW = 4


class StepBudget(NamedTuple):
    """What prefill may take of one step: tokens to compute, seconds to read from disk."""

    tokens: int
    seconds: float


class PrefillBudget:
    """Turns a time target into tokens.

    `target_s` is how long a step with decoding rows may take, prefill included. None
    allows some times a step without prefill, which suits machines whose prefill does
    not need large chunks.
    """

    def __init__(
        self,
        *,
        prefill_chunk: int,
        target_s: float | None,
        grain: int = 1,
    ) -> None:
        """A budget is at least `grain` tokens: a smaller chunk would take as long."""
        self._prefill_chunk = prefill_chunk
        self._smallest = min(prefill_chunk, max(_SMALLEST, grain))
        self._target_s = target_s
        self._tokens_per_s: float | None = None
        # By the number of rows, since a crowd's step takes longer.
        self._decode_s: dict[int, float] = {}

    def for_step(self, running: Rows[Sequence], num_waiting: int = 0) -> StepBudget:
        """The next step's budget: a whole chunk when nobody is kept waiting by it."""
        num_decoding = 0
        for sequence in running:
            if sequence.is_decoding:
                num_decoding += 1
        num_prompts = len(running) - num_decoding + num_waiting
        seconds = self._seconds(num_decoding, num_prompts)
        if self._tokens_per_s is None or num_decoding == 0:
            return StepBudget(self._prefill_chunk, seconds)
        in_time = int(self._tokens_per_s * seconds)
        tokens = min(self._prefill_chunk, in_time)
        return StepBudget(max(self._smallest, tokens), seconds)

    def record_prefill(self, num_tokens: int, seconds: float) -> None:
        """Take in one measured prefill call. Short ones say little and are left out."""
        if num_tokens >= _LEAST_MEASURED and seconds > 0:
            speed = num_tokens / seconds
            self._tokens_per_s = _smooth(self._tokens_per_s, speed)

    def record_decode(self, num_rows: int, seconds: float) -> None:
        """Take in one decode call without prefill."""
        before = self._decode_s.get(num_rows)
        self._decode_s[num_rows] = _smooth(before, seconds)

    def record_mixed(
        self,
        num_rows: int,
        num_tokens: int,
        seconds: float,
    ) -> None:
        """Take in one decode step that also prefilled.

        What it took longer than a step without prompt tokens is the prefill's.
        """
        if not self._decode_s:
            return
        beyond_decode = seconds - self._decode_seconds(num_rows)
        prefill = max(beyond_decode, 0.2 * seconds)
        self.record_prefill(num_tokens, prefill)

    def _seconds(self, num_decoding: int, num_prompts: int) -> float:
        """How long prefill may take in a step that also decodes."""
        decode = self._decode_seconds(num_decoding)
        if self._target_s is not None:
            return max(self._target_s - decode, 0.2 * self._target_s)
        more_decoding = max(0, num_decoding - _FEW)
        crowd = 2 * (num_prompts - 1) + more_decoding / 2
        slowdown = _SLOWDOWN * max(1.0, crowd)
        return decode * min(slowdown, _MOST_SLOWDOWN)

    def _decode_seconds(self, num_rows: int) -> float:
        """Of a step of so many rows, or of the nearest number that was seen."""
        if num_rows in self._decode_s:
            return self._decode_s[num_rows]
        if not self._decode_s:
            return _UNKNOWN_DECODE_S
        nearest = min(self._decode_s, key=lambda seen: abs(seen - num_rows))
        return self._decode_s[nearest]


def _smooth(before: float | None, newest: float) -> float:
    if before is None:
        return newest
    return before + _SMOOTHING * (newest - before)
