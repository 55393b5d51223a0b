"""Figures with their noise bounds: percentiles, bootstrap intervals, and what a run of requests comes to."""

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
    """A value between its noise bounds. `stable` ones depend on the code alone, not on the machine's mood.

    A value that is infinite stands for requests that failed: they are slower than any answer.
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
        return row | {
            name: row[name] if math.isfinite(row[name]) else None
            for name in ("value", "low", "high")
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Figure:
        """Raises ValueError, KeyError or TypeError for something else."""
        values = {name: _number(row[name]) for name in ("value", "low", "high")}
        found = cls(**(row | values))
        if found.better not in ("lower", "higher") or not isinstance(found.unit, str):
            raise ValueError(f"unit {found.unit!r}, better {found.better!r}")
        if not isinstance(found.stable, bool):
            raise TypeError(f"stable is {found.stable!r}")
        return found


def _number(value: object) -> float:
    if value is None:
        return math.inf
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or math.isnan(value)
    ):
        raise ValueError(f"{value!r} is no figure")
    return float(value)


def exact(
    value: float, unit: str, better: Better = "lower", *, stable: bool = False
) -> Figure:
    """A figure without noise, such as a count."""
    return Figure(value, unit, value, value, better, stable)


def spread(samples: Sequence[float], unit: str, better: Better = "lower") -> Figure:
    """The median of some rounds, between their quartiles."""
    low, middle, high = np.percentile(np.asarray(samples, float), (25, 50, 75))
    return Figure(float(middle), unit, float(low), float(high), better)


@dataclass(frozen=True, slots=True)
class Slo:
    """What makes a request a good one: its TTFT and its mean inter-token latency, in seconds."""

    ttft_s: float = 2.0
    itl_s: float = 0.2

    def is_met(self, outcome: Outcome) -> bool:
        if outcome.failure is not None or outcome.ttft is None:
            return False
        gaps = outcome.gaps
        return (
            outcome.ttft <= self.ttft_s
            and (sum(gaps) / len(gaps) if gaps else 0.0) <= self.itl_s
        )


def percentile(values: np.ndarray[Any, Any], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed; infinite ones allowed."""
    if not len(values):
        return math.inf
    return float(np.sort(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)])


def intervals(
    groups: Sequence[np.ndarray[Any, Any]], percents: Sequence[int], seed: int = 0
) -> list[tuple[float, float]]:
    """95 % intervals of percentiles, by drawing whole groups (requests) again: values of one request depend on each other.

    The values are sorted once, and drawn groups only weigh them.
    """
    groups = [group for group in groups if len(group)]
    if not groups:
        return [(math.inf, math.inf)] * len(percents)
    values, count = np.concatenate(groups), len(groups)
    order = np.argsort(values, kind="stable")
    owners, values = (
        np.repeat(np.arange(count), [len(group) for group in groups])[order],
        values[order],
    )
    rng = np.random.default_rng(seed)
    drawn: list[list[float]] = [[] for _ in percents]
    for _ in range(_RESAMPLES):
        ranks = np.cumsum(
            np.bincount(rng.integers(0, count, count), minlength=count)[owners]
        )
        for found, percent in zip(drawn, percents, strict=True):
            wanted = max(1, math.ceil(percent / 100 * int(ranks[-1])))
            found.append(float(values[np.searchsorted(ranks, wanted)]))
    return [
        (percentile(np.asarray(found), 2.5), percentile(np.asarray(found), 97.5))
        for found in drawn
    ]


def latency(outcomes: Sequence[Outcome], name: str) -> dict[str, Figure]:
    """P50, P95 and P99 of `ttft`, `itl` or `e2e` in seconds; none where answers that came whole have no such value."""
    groups = [np.asarray(_VALUES[name](outcome), float) for outcome in outcomes]
    together = np.concatenate(groups) if groups else np.zeros(0)
    if not len(together):
        return {}
    bounds = intervals(groups, PERCENTILES)
    return {
        f"{name}_p{percent}": Figure(percentile(together, percent), "s", low, high)
        for percent, (low, high) in zip(PERCENTILES, bounds, strict=True)
    }


def _ttft(outcome: Outcome) -> list[float]:
    return [math.inf if outcome.failure or outcome.ttft is None else outcome.ttft]


def _itl(outcome: Outcome) -> list[float]:
    """A request that failed has one gap without an end, and those before it were not fast either."""
    return [math.inf] * (len(outcome.gaps) + 1) if outcome.failure else outcome.gaps


def _e2e(outcome: Outcome) -> list[float]:
    return [math.inf if outcome.failure else outcome.e2e]


_VALUES: dict[str, Callable[[Outcome], list[float]]] = {
    "ttft": _ttft,
    "itl": _itl,
    "e2e": _e2e,
}


def summary(outcomes: Sequence[Outcome], wall_s: float, slo: Slo) -> dict[str, Figure]:
    """All figures of a run (or of the pooled requests of several, whose `wall_s` is then their sum)."""
    whole = [outcome for outcome in outcomes if outcome.failure is None]
    found = (
        latency(outcomes, "ttft") | latency(outcomes, "itl") | latency(outcomes, "e2e")
    )
    tokens = sum(outcome.tokens for outcome in whole)
    good = sum(slo.is_met(outcome) for outcome in outcomes)
    prompt = sum(outcome.usage.prompt or 0 for outcome in whole)
    cached = [
        outcome.usage.cached for outcome in whole if outcome.usage.cached is not None
    ]
    found |= {
        "requests": exact(len(outcomes), "", "higher"),
        "errors": exact(len(outcomes) - len(whole), ""),
        "short_answers": exact(
            sum(outcome.tokens < outcome.max_tokens for outcome in whole), ""
        ),
        "tokens_per_s": exact(tokens / wall_s, "tokens/s", "higher"),
        "requests_per_s": exact(len(whole) / wall_s, "/s", "higher"),
        "goodput": exact(good / wall_s, "/s", "higher"),
        "good_share": exact(good / len(outcomes) if outcomes else 0.0, "", "higher"),
        "output_tokens": exact(tokens, "tokens", "higher"),
        "events": exact(sum(len(outcome.times) for outcome in whole), "", "higher"),
        "prompt_tokens": exact(prompt, "tokens"),
        **({"cached_tokens": exact(sum(cached), "tokens", "higher")} if cached else {}),
        "client_lag_p99": exact(
            percentile(np.asarray([one.sent - one.scheduled for one in outcomes]), 99),
            "s",
        ),
    }
    return found


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests failed, by reason."""
    return dict(
        Counter(
            str(outcome.failure) for outcome in outcomes if outcome.failure is not None
        )
    )
