"""How many prompt tokens a step may prefill, so that rows that are answering are not held up for long.

Measures the speed of prefill and of decode steps as they run; knows nothing of requests but whether they are decoding.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from rvllm_local.engine.sequence import Sequence

_SMOOTHING = 0.3  # weight of the newest measurement
_SMALLEST = 12  # tokens; smaller chunks cost more than they save
_LEAST_MEASURED = (
    8  # tokens; the even parts of a block have fewer than `_SMALLEST`, and must count
)
_UNKNOWN_DECODE_S = 0.05
# Where no target is given, prefill may take so many times the decode step beside it: this much for one long prompt beside
# a few answers, which nobody should be held up by; twice as much again for each further prompt that waits, and half as much
# for each row above `_FEW` that decodes, so that a burst of requests soon decodes together instead of waiting for its last prompts.
_SLOWDOWN = 0.8
_MOST_SLOWDOWN = 10.0
_FEW = 4


class PrefillBudget:
    """Turns a time target into tokens.

    `target_s` is how long a step with decoding rows may take, prefill included. None: some times a step without prefill,
    which is what suits machines whose prefill does not need large chunks.
    """

    def __init__(
        self, *, prefill_chunk: int, target_s: float | None, grain: int = 1
    ) -> None:
        """A budget is at least `grain` tokens: a smaller chunk would take as long."""
        self._prefill_chunk = prefill_chunk
        self._smallest = min(prefill_chunk, max(_SMALLEST, grain))
        self._target_s = target_s
        self._tokens_per_s: float | None = None
        self._decode_s: dict[
            int, float
        ] = {}  # by the number of rows, since a crowd's step takes longer

    def record_prefill(self, num_tokens: int, seconds: float) -> None:
        """Take in one measured prefill call. Short ones say little about speed and are left out."""
        if num_tokens >= _LEAST_MEASURED and seconds > 0:
            self._tokens_per_s = _smooth(self._tokens_per_s, num_tokens / seconds)

    def record_decode(self, num_rows: int, seconds: float) -> None:
        """Take in one decode call without prefill."""
        self._decode_s[num_rows] = _smooth(self._decode_s.get(num_rows), seconds)

    def record_mixed(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Take in one decode step that also prefilled: what it took longer than one without is the prefill's."""
        if self._decode_s:
            self.record_prefill(
                num_tokens, max(seconds - self._decode_seconds(num_rows), 0.2 * seconds)
            )

    def tokens(self, running: Rows[Sequence], num_waiting: int = 0) -> int:
        """The prefill budget of the next step: a whole chunk when nobody is kept waiting by it."""
        if self._tokens_per_s is None or not any(
            sequence.is_decoding for sequence in running
        ):
            return self._prefill_chunk
        paced = int(self._tokens_per_s * self.seconds(running, num_waiting))
        return max(self._smallest, min(self._prefill_chunk, paced))

    def seconds(self, running: Rows[Sequence], num_waiting: int = 0) -> float:
        """What prefill may take of a step that also decodes."""
        num_rows = sum(sequence.is_decoding for sequence in running)
        decode = self._decode_seconds(num_rows)
        if self._target_s is not None:
            return max(self._target_s - decode, 0.2 * self._target_s)
        num_prompts = len(running) - num_rows + num_waiting
        crowd = 2 * (num_prompts - 1) + max(0, num_rows - _FEW) / 2
        return decode * min(_SLOWDOWN * max(1.0, crowd), _MOST_SLOWDOWN)

    def _decode_seconds(self, num_rows: int) -> float:
        """Of a step of so many rows, or of the nearest number that was seen."""
        if not self._decode_s:
            return _UNKNOWN_DECODE_S
        return self._decode_s[
            min(self._decode_s, key=lambda seen: abs(seen - num_rows))
        ]


def _smooth(known: float | None, new: float) -> float:
    return new if known is None else known + _SMOOTHING * (new - known)
