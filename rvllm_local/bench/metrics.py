"""Figures with their noise bounds: percentiles, bootstrap intervals, a run's summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rvllm_local.bench.outcome import Outcome

PERCENTILES = (50, 95, 99)
_RESAMPLES = 400
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value between its noise bounds.

    `stable` ones depend on the code alone, not on the machine's mood. An infinite value
    stands for requests that failed: they are slower than any answer.
    """

    value: float
    unit: str
    low: float
    high: float
    better: Better = "lower"
    stable: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields, with None for infinite values."""
        row = asdict(self)
        for name in ("value", "low", "high"):
            if math.isinf(row[name]):
                row[name] = None
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Figure:
        """Raises ValueError, KeyError or TypeError for something else."""
        values = {name: _number(row[name]) for name in ("value", "low", "high")}
        figure = cls(**(row | values))
        if figure.better not in ("lower", "higher") or not isinstance(figure.unit, str):
            raise ValueError(f"unit {figure.unit!r}, better {figure.better!r}")
        if not isinstance(figure.stable, bool):
            raise TypeError(f"stable is {figure.stable!r}")
        return figure


def _number(value: object) -> float:
    if value is None:
        return math.inf
    is_bool = isinstance(value, bool)
    if isinstance(value, int | float) and not is_bool and not math.isnan(value):
        return float(value)
    raise ValueError(f"{value!r} is no figure")


def exact(
    value: float,
    unit: str,
    better: Better = "lower",
    *,
    stable: bool = False,
) -> Figure:
    """A figure without noise, such as a count."""
    return Figure(value, unit, value, value, better, stable)


def spread(
    samples: Sequence[float],
    unit: str,
    better: Better = "lower",
) -> Figure:
    """The median of some rounds, between their quartiles."""
    low, middle, high = np.percentile(np.asarray(samples, float), (25, 50, 75))
    return Figure(float(middle), unit, float(low), float(high), better)


@dataclass(frozen=True, slots=True)
class Slo:
    """The limits of a good request: TTFT and mean inter-token latency, in seconds."""

    ttft_s: float = 2.0
    itl_s: float = 0.2

    def is_met(self, outcome: Outcome) -> bool:
        if outcome.failure is not None or outcome.ttft is None:
            return False
        gaps = outcome.gaps
        mean_gap = 0.0
        if gaps:
            mean_gap = sum(gaps) / len(gaps)
        return outcome.ttft <= self.ttft_s and mean_gap <= self.itl_s


def percentile(values: np.ndarray[Any, Any], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed.

    Values may be infinite; without any the percentile is, too.
    """
    if not len(values):
        return math.inf
    rank = math.ceil(percent / 100 * len(values))
    return float(np.sort(values)[max(0, rank - 1)])


def intervals(
    groups: Sequence[np.ndarray[Any, Any]],
    percents: Sequence[int],
    seed: int = 0,
) -> list[tuple[float, float]]:
    """95 % intervals of percentiles, by bootstrap over whole groups (requests).

    Values of one request depend on each other, so that they are drawn together. They
    are sorted once, and drawn groups only weigh them.
    """
    groups = [group for group in groups if len(group)]
    if not groups:
        return [(math.inf, math.inf)] * len(percents)
    count = len(groups)
    values = np.concatenate(groups)
    owners = np.repeat(np.arange(count), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    rng = np.random.default_rng(seed)
    resampled = np.zeros((_RESAMPLES, len(percents)))
    for row in resampled:
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        ranks = np.cumsum(weights[owners])
        for column, percent in enumerate(percents):
            rank = max(1, math.ceil(percent / 100 * int(ranks[-1])))
            row[column] = values[np.searchsorted(ranks, rank)]
    return [
        (percentile(column, 2.5), percentile(column, 97.5)) for column in resampled.T
    ]


def latency(outcomes: Sequence[Outcome], name: str) -> dict[str, Figure]:
    """P50, P95 and P99 of `ttft`, `itl` or `e2e`, in seconds.

    Empty where answers that came whole have no such value.
    """
    groups = [np.asarray(_VALUES[name](outcome), float) for outcome in outcomes]
    together = np.concatenate(groups) if groups else np.zeros(0)
    if not len(together):
        return {}
    table = {}
    bounds = intervals(groups, PERCENTILES)
    for percent, (low, high) in zip(PERCENTILES, bounds, strict=True):
        value = percentile(together, percent)
        table[f"{name}_p{percent}"] = Figure(value, "s", low, high)
    return table


def _ttft(outcome: Outcome) -> list[float]:
    if outcome.failure or outcome.ttft is None:
        return [math.inf]
    return [outcome.ttft]


def _itl(outcome: Outcome) -> list[float]:
    """The gaps between tokens.

    A request that failed has one gap without an end, and those before it were not fast
    either.
    """
    if outcome.failure:
        return [math.inf] * (len(outcome.gaps) + 1)
    return outcome.gaps


def _e2e(outcome: Outcome) -> list[float]:
    if outcome.failure:
        return [math.inf]
    return [outcome.e2e]


_VALUES: dict[str, Callable[[Outcome], list[float]]] = {
    "ttft": _ttft,
    "itl": _itl,
    "e2e": _e2e,
}


def summary(
    outcomes: Sequence[Outcome],
    wall_s: float,
    slo: Slo,
) -> dict[str, Figure]:
    """All figures of a run.

    Also of the pooled requests of several runs, whose `wall_s` is then their sum.
    """
    table: dict[str, Figure] = {}
    for name in _VALUES:
        table |= latency(outcomes, name)
    whole = [outcome for outcome in outcomes if outcome.failure is None]
    return table | _counts(outcomes, whole) | _rates(outcomes, whole, wall_s, slo)


def sending_lag(outcomes: Sequence[Outcome]) -> float:
    """How late requests were sent, in seconds (P99); infinite if there were none."""
    lags = [outcome.sent - outcome.scheduled for outcome in outcomes]
    return percentile(np.asarray(lags), 99)


def _counts(outcomes: Sequence[Outcome], whole: Sequence[Outcome]) -> dict[str, Figure]:
    short = [answer for answer in whole if answer.tokens < answer.max_tokens]
    events = sum(len(answer.times) for answer in whole)
    tokens = sum(answer.tokens for answer in whole)
    prompt = sum(answer.usage.prompt or 0 for answer in whole)
    table = {
        "requests": exact(len(outcomes), "", "higher"),
        "errors": exact(len(outcomes) - len(whole), ""),
        "short_answers": exact(len(short), ""),
        "output_tokens": exact(tokens, "tokens", "higher"),
        "events": exact(events, "", "higher"),
        "prompt_tokens": exact(prompt, "tokens"),
        "client_lag_p99": exact(sending_lag(outcomes), "s"),
    }
    cached = [answer.usage.cached for answer in whole]
    told = [count for count in cached if count is not None]
    if told:
        table["cached_tokens"] = exact(sum(told), "tokens", "higher")
    return table


def _rates(
    outcomes: Sequence[Outcome],
    whole: Sequence[Outcome],
    wall_s: float,
    slo: Slo,
) -> dict[str, Figure]:
    tokens = sum(answer.tokens for answer in whole)
    good = sum(slo.is_met(outcome) for outcome in outcomes)
    share = good / len(outcomes) if outcomes else 0.0
    return {
        "tokens_per_s": exact(tokens / wall_s, "tokens/s", "higher"),
        "requests_per_s": exact(len(whole) / wall_s, "/s", "higher"),
        "goodput": exact(good / wall_s, "/s", "higher"),
        "good_share": exact(share, "", "higher"),
    }


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests failed, by reason."""
    reasons = [outcome.failure for outcome in outcomes]
    return dict(Counter(str(reason) for reason in reasons if reason is not None))
