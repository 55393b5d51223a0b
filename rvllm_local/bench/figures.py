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
        return row | {name: row[name] if math.isfinite(row[name]) else None for name in ("value", "low", "high")}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Figure:
        """Raises ValueError, KeyError or TypeError for something else."""
        values = {name: math.inf if row[name] is None else float(row[name]) for name in ("value", "low", "high")}
        return cls(**(row | values))


def exact(value: float, unit: str, better: Better = "lower", *, stable: bool = False) -> Figure:
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
        return outcome.ttft <= self.ttft_s and (sum(gaps) / len(gaps) if gaps else 0.0) <= self.itl_s


def percentile(values: np.ndarray[Any, Any], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed; infinite ones allowed."""
    if not len(values):
        return math.inf
    return float(np.sort(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)])


def bootstrap(
    groups: Sequence[np.ndarray[Any, Any]], statistic: Callable[[np.ndarray[Any, Any]], float], seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval, by drawing whole groups (requests) again: values of one request depend on each other."""
    if not groups:
        return math.inf, math.inf
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([groups[index] for index in rng.integers(0, len(groups), len(groups))]))
        for _ in range(_RESAMPLES)
    ]
    return percentile(np.asarray(drawn), 2.5), percentile(np.asarray(drawn), 97.5)


def latency(outcomes: Sequence[Outcome], name: str) -> dict[str, Figure]:
    """P50, P95 and P99 of `ttft`, `itl` or `e2e` in seconds."""
    groups = [np.asarray(_VALUES[name](outcome), float) for outcome in outcomes]
    together = np.concatenate(groups) if groups else np.zeros(0)
    found = {}
    for percent in PERCENTILES:
        low, high = bootstrap(groups, lambda values, percent=percent: percentile(values, percent))  # type: ignore[misc]
        found[f"{name}_p{percent}"] = Figure(percentile(together, percent), "s", low, high)
    return found


def _ttft(outcome: Outcome) -> list[float]:
    return [math.inf if outcome.failure or outcome.ttft is None else outcome.ttft]


def _itl(outcome: Outcome) -> list[float]:
    """An answer that failed on its way has one gap without an end."""
    return outcome.gaps + ([math.inf] if outcome.failure and outcome.times else [])


def _e2e(outcome: Outcome) -> list[float]:
    return [math.inf if outcome.failure else outcome.e2e]


_VALUES: dict[str, Callable[[Outcome], list[float]]] = {"ttft": _ttft, "itl": _itl, "e2e": _e2e}


def summary(outcomes: Sequence[Outcome], wall_s: float, slo: Slo) -> dict[str, Figure]:
    """All figures of a run (or of the pooled requests of several, whose `wall_s` is then their sum)."""
    whole = [outcome for outcome in outcomes if outcome.failure is None]
    found = latency(outcomes, "ttft") | latency(outcomes, "itl") | latency(outcomes, "e2e")
    tokens = sum(outcome.tokens for outcome in whole)
    good = sum(slo.is_met(outcome) for outcome in outcomes)
    prompt = sum(outcome.usage.prompt or 0 for outcome in whole)
    cached = sum(outcome.usage.cached or 0 for outcome in whole)
    found |= {
        "requests": exact(len(outcomes), "", "higher"),
        "errors": exact(len(outcomes) - len(whole), ""),
        "short_answers": exact(sum(outcome.tokens < outcome.max_tokens for outcome in whole), ""),
        "tokens_per_s": exact(tokens / wall_s, "tokens/s", "higher"),
        "requests_per_s": exact(len(whole) / wall_s, "/s", "higher"),
        "goodput": exact(good / wall_s, "/s", "higher"),
        "good_share": exact(good / len(outcomes) if outcomes else 0.0, "", "higher"),
        "output_tokens": exact(tokens, "tokens", "higher"),
        "events": exact(sum(len(outcome.times) for outcome in whole), "", "higher"),
        "prompt_tokens": exact(prompt, "tokens"),
        "cached_tokens": exact(cached, "tokens", "higher"),
        "client_lag_p99": exact(percentile(np.asarray([one.sent - one.scheduled for one in outcomes]), 99), "s"),
    }
    return found


def failures(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests failed, by reason."""
    return dict(Counter(str(outcome.failure) for outcome in outcomes if outcome.failure is not None))
