"""How many tokens a step drafts for each row: as many as pay, and none where none do.

A drafted token pays by its chance to be kept, and costs what a step takes longer for a
further token. Steps are measured as they run, since that differs by machine and model.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Sequence

_KEPT = 5  # measurements of each number of tokens
_ENOUGH = 3  # of them to be trusted
_FADES = 512  # steps, after which a measurement no longer counts
_PRIOR = 0.06  # of a step's time, for each further token, where nothing was measured
_FIRST_LENGTH = 4  # drafts of a model that was not timed yet
_TRIED_AGAIN = 64  # steps after which drafts that did not pay are tried
_GAIN = 1.02  # less than this is no gain


class StepTimes:
    """The newest measurements of steps of one kind, by the number of their tokens.

    trusted: the numbers of tokens that were measured often enough, in order.
    """

    def __init__(self) -> None:
        self.trusted: list[int] = []
        self._seconds: dict[int, deque[float]] = {}
        self._newest: dict[int, int] = {}

    @property
    def counts(self) -> list[int]:
        return sorted(self._seconds)

    def of(self, num_tokens: int) -> list[float]:
        return list(self._seconds.get(num_tokens, ()))

    def record(self, num_tokens: int, seconds: float, step: int) -> None:
        measured = self._seconds.setdefault(num_tokens, deque(maxlen=_KEPT))
        measured.append(seconds)
        self._newest[num_tokens] = step
        if len(measured) == _ENOUGH:
            bisect.insort(self.trusted, num_tokens)

    def forget(self, step: int) -> None:
        for num_tokens, newest in list(self._newest.items()):
            if step - newest > _FADES:
                del self._newest[num_tokens]
                del self._seconds[num_tokens]
                if num_tokens in self.trusted:
                    self.trusted.remove(num_tokens)

    def slope(self) -> float | None:
        """Seconds of one token more, between the fewest and the most; None: unknown."""
        counts = self.trusted
        if len(counts) < 2:
            return None
        first = _typical(self._seconds[counts[0]])
        last = _typical(self._seconds[counts[-1]])
        return max(0.0, (last - first) / (counts[-1] - counts[0]))


class StepCosts:
    """Seconds of a step by the number of its tokens, and whether it checks drafts.

    A step that does is read before the next one is chosen. Others overlap with the
    host's work, where the back end lets them, and take less for as many tokens.
    """

    def __init__(self) -> None:
        self._plain = StepTimes()
        self._checking = StepTimes()
        self._steps = 0
        self._trials: dict[int, int] = {}
        self._costs: dict[tuple[int, bool], float] = {}

    def knows_plain(self, num_rows: int) -> bool:
        """Steps of about so many rows without drafts were measured.

        Others are held against them.
        """
        for count in self._plain.trusted:
            if count.bit_length() == num_rows.bit_length():
                return True
        return False

    def record(self, num_tokens: int, seconds: float, *, checks: bool = False) -> None:
        """Take in a step that computed so many tokens and did nothing else."""
        self._steps += 1
        times = self._checking if checks else self._plain
        if num_tokens not in times.trusted or self._steps % _KEPT == 0:
            self._costs.clear()  # others change little, and are asked for each step
        times.record(num_tokens, seconds, self._steps)
        if checks:
            self.note_trial(num_tokens)
        if self._steps % _FADES == 0:
            self._trials.clear()
        if self._steps % _KEPT == 0:
            self._plain.forget(self._steps)
            self._checking.forget(self._steps)

    def wants_trial(self, num_tokens: int) -> bool:
        """Few steps checked about so many tokens: what they take is not known.

        A device may take no longer for many than for one, which nobody would find out
        who only drafts what seems to pay.
        """
        return self._trials.get(num_tokens.bit_length(), 0) < _ENOUGH

    def note_trial(self, num_tokens: int) -> None:
        """A step checked about so many tokens, or had no room for them."""
        size = num_tokens.bit_length()
        self._trials[size] = self._trials.get(size, 0) + 1

    def cost(self, num_tokens: int, *, checks: bool = False) -> float:
        """Of a step of so many tokens, in any unit: measured, or estimated.

        One measurement alone may be of a step that was held up, or that compiled what
        it ran. So the first two are held against the estimate.
        """
        seconds = self._costs.get((num_tokens, checks))
        if seconds is None:
            seconds = self._measured_or_estimated(num_tokens, checks=checks)
            self._costs[num_tokens, checks] = seconds
        return seconds

    def _measured_or_estimated(self, num_tokens: int, *, checks: bool) -> float:
        times = self._checking if checks else self._plain
        samples = times.of(num_tokens)
        if len(samples) < _ENOUGH:
            samples.append(self._estimate(num_tokens, checks=checks))
        return _typical(samples)

    def _estimate(self, num_tokens: int, *, checks: bool) -> float:
        """From fewer tokens, and at most what as many or more were measured to take."""
        estimate = self._from_fewer(num_tokens, checks=checks)
        for times in (self._checking,) if checks else (self._plain, self._checking):
            for count in times.counts:
                if count > num_tokens:
                    estimate = min(estimate, _typical(times.of(count)))
        return estimate

    def _from_fewer(self, num_tokens: int, *, checks: bool) -> float:
        """From the next smaller number that was measured, of the same kind first."""
        times = self._checking if checks else self._plain
        fewer = [count for count in times.counts if count < num_tokens]
        if fewer:
            seconds = self.cost(fewer[-1], checks=checks)
            return seconds + self._slope(times) * (num_tokens - fewer[-1])
        plain = [count for count in self._plain.counts if count <= num_tokens]
        if checks and plain:
            seconds = self.cost(plain[-1])
            return seconds + self._slope(times) * (num_tokens - plain[-1])
        return 1 + _PRIOR * num_tokens

    def _slope(self, times: StepTimes) -> float:
        """Seconds of one token more: a share of a step, or what was measured if less.

        A second token may cost a lot and others nothing, as where a device has a
        product of its own for one row. So what was not measured is tried.
        """
        least = []
        for each in (self._plain, self._checking):
            least += [_typical(each.of(count)) for count in each.counts]
        usual = _PRIOR * min(least)
        measured = times.slope()
        return usual if measured is None else min(usual, measured)

    def measured(self) -> dict[str, float]:
        """Seconds by the number of tokens; "+" with those that check drafts."""
        seconds = {}
        for count in self._plain.counts:
            seconds[str(count)] = self.cost(count)
        for count in self._checking.counts:
            seconds[f"{count}+"] = self.cost(count, checks=True)
        return seconds


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
    not grow. So the best tokens of all rows are the first ones of each. All are drafted
    a few times to learn what that takes.
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
        rate = expected / costs.cost(num_rows + count, checks=True)
        if rate > best_rate:
            best_rate = rate
            best_count = count
    most_offered = min(len(offers), most)
    if most_offered and costs.wants_trial(num_rows + most_offered):
        best_count = most_offered
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
            step = self._costs.cost(num_rows * (1 + length), checks=True)
            rate = num_rows * expected / (step + length * seconds_a_draft)
            if rate > best_rate:
                best = length
                best_rate = rate
        self._skipped = 0 if best else self._skipped + 1
        if self._skipped % _TRIED_AGAIN == _TRIED_AGAIN - 1:
            return min(2, most)
        return best
