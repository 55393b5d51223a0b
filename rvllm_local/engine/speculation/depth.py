"""How many tokens a step drafts for each row: as many as pay, and none where none do.

A drafted token pays by its chance to be kept, and costs what a step takes longer for a
further token. Steps are measured as they run, since that differs by machine and model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

_KEPT = 5  # measurements of each number of tokens
_ENOUGH = 3  # of them to be trusted
_FADES = 512  # steps, after which a measurement no longer counts
_PRIOR = 0.06  # of a step's time, for each further token, where nothing was measured
_FIRST_LENGTH = 4  # drafts of a model that was not timed yet
_TRIED_AGAIN = 64  # steps after which drafts that did not pay are tried
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

        One measurement alone may be of a step that was held up, or that compiled what
        it ran. So the first two are held against the estimate.
        """
        samples = list(self._seconds.get(num_tokens, ()))
        if len(samples) < _ENOUGH:
            samples.append(self._estimate(num_tokens))
        return _typical(samples)

    def _estimate(self, num_tokens: int) -> float:
        """From the next smaller number that was measured, or else the least one."""
        if not self._seconds:
            return 1 + _PRIOR * num_tokens
        base = min(self._seconds)
        for count in self._seconds:
            if base < count < num_tokens:
                base = count
        seconds = _typical(self._seconds[base])
        estimate = seconds + self._slope() * (num_tokens - base)
        return max(estimate, seconds / 2)

    def _slope(self) -> float:
        """Seconds of one token more: a share of a step, or what was measured if less.

        A second token may cost a lot and others nothing, as where a device has a
        product of its own for one row. So what was not measured is tried.
        """
        fewest = min(self._seconds)
        usual = _PRIOR * _typical(self._seconds[fewest])
        counts = []
        for count in sorted(self._seconds):
            if len(self._seconds[count]) >= _ENOUGH:
                counts.append(count)
        if len(counts) < 2:
            return usual
        first = _typical(self._seconds[counts[0]])
        last = _typical(self._seconds[counts[-1]])
        slope = (last - first) / (counts[-1] - counts[0])
        return min(usual, max(0.0, slope))

    def measured(self) -> dict[int, float]:
        """Seconds by the number of tokens, of those that were measured."""
        return {count: self.cost(count) for count in sorted(self._seconds)}


def _typical(samples: Iterable[float]) -> float:
    """Of steps that were held up or not: a low one. The machine only adds time."""
    ordered = sorted(samples)
    return ordered[(len(ordered) - 1) // 3]


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


class DraftLength:
    """How many tokens a drafter that runs a model should draw for each row.

    Each takes a call of that model, which is measured, too.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._skipped = 0

    def record(self, length: int, seconds: float) -> None:
        """Take in that drawing so many tokens of each row took so long."""
        self._seconds.append(seconds / length)

    def choose(self, num_rows: int, chance: float, most: int) -> int:
        """The length of the best rate, at most `most`; 0 if drafts do not pay.

        `chance` is that of a drafted token to be kept. Now and then some are drafted
        that do not seem to pay, since that may have changed.
        """
        if not self._seconds:
            return min(_FIRST_LENGTH, most)
        seconds_a_draft = _typical(self._seconds)
        best = 0
        best_rate = _GAIN * num_rows / self._costs.cost(num_rows)
        expected = 1.0
        for length in range(1, most + 1):
            expected += chance**length
            step = self._costs.cost(num_rows * (1 + length))
            rate = num_rows * expected / (step + length * seconds_a_draft)
            if rate > best_rate:
                best = length
                best_rate = rate
        self._skipped = 0 if best else self._skipped + 1
        if self._skipped % _TRIED_AGAIN == _TRIED_AGAIN - 1:
            return min(2, most)
        return best
