"""How many tokens a step drafts for each row: as many as pay, and none where none do.

A drafted token pays by its chance to be kept, and costs what a step takes longer for a
further token. Steps are measured as they run, since that differs by machine and model.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

_KEPT = 5  # measurements of each number of tokens
_FADES = 512  # steps, after which a measurement no longer counts
_PRIOR = 0.06  # of a step's time, for each further token, where nothing was measured
_GAIN = 1.02  # less than this is no gain


class StepCosts:
    """Seconds of a step by the number of its tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._newest: dict[int, int] = {}
        self._steps = 0

    def record(self, num_tokens: int, seconds: float) -> None:
        """Take in a step that computed so many tokens and did nothing else."""
        self._steps += 1
        measured = self._seconds.get(num_tokens)
        if measured is None:
            measured = deque(maxlen=_KEPT)
            self._seconds[num_tokens] = measured
        measured.append(seconds)
        self._newest[num_tokens] = self._steps
        if self._steps % _KEPT == 0:
            self._forget()

    def _forget(self) -> None:
        for num_tokens, step in list(self._newest.items()):
            if self._steps - step > _FADES:
                del self._newest[num_tokens]
                del self._seconds[num_tokens]

    def cost(self, num_tokens: int) -> float:
        """Of a step of so many tokens, in any unit: measured, or estimated.

        Estimates grow from the next smaller number that was measured.
        """
        measured = self._seconds.get(num_tokens)
        if measured:
            return statistics.median(measured)
        base = 0
        for count in self._seconds:
            if base < count < num_tokens:
                base = count
        grown = 1 + _PRIOR * (num_tokens - base)
        if base == 0:
            return grown
        return statistics.median(self._seconds[base]) * grown


def choose_depths(
    costs: StepCosts,
    chances: Sequence[Sequence[float]],
    most: int,
) -> list[int]:
    """How many tokens to draft for each row, at most `most` in all.

    `chances` holds for each drafted token of each row the chance to be kept; a row's do
    not grow. So the best tokens of all rows are the first ones of each.
    """
    offers: list[tuple[float, int]] = []
    for row, row_chances in enumerate(chances):
        for chance in row_chances:
            offers.append((-chance, row))
    offers.sort()
    num_rows = len(chances)
    expected = float(num_rows)
    best_rate = _GAIN * expected / costs.cost(num_rows)
    best_count = 0
    for count, (negative, _) in enumerate(offers[:most], start=1):
        expected -= negative
        rate = expected / costs.cost(num_rows + count)
        if rate > best_rate:
            best_rate = rate
            best_count = count
    depths = [0] * num_rows
    for _, row in offers[:best_count]:
        depths[row] += 1
    return depths
