"""`rvllm bench compare`: two records side by side, with what is noise and what is not."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.bench.metrics import Figure
from rvllm_local.bench.record import Record, load
from rvllm_local.bench.text_table import aligned, show
from rvllm_local.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in both records.

    `ratio` is B over A. `verdict` is same, better, worse, noise, new or gone.
    """

    run: str
    name: str
    before: Figure | None
    after: Figure | None
    ratio: float
    verdict: str

    @property
    def is_stable(self) -> bool:
        """True if the figure depends on the code alone, in either record."""
        if self.before is not None and self.before.stable:
            return True
        return self.after is not None and self.after.stable

    @property
    def is_regression(self) -> bool:
        return self.is_stable and self.verdict in ("worse", "gone")


def compare(arguments: Namespace) -> int:
    """Print the differences of two records.

    The exit status is 1 if a stable figure got worse by more than `--fail-over`.
    """
    before = load(Path(arguments.before))
    after = load(Path(arguments.after))
    tolerance = arguments.fail_over
    if not 1 < tolerance < math.inf:
        raise ConfigError(
            f"--fail-over must be a ratio above 1, like 1.1, not {tolerance:g}"
        )
    if before.kind != after.kind:
        raise ConfigError(
            f"{arguments.before} is of kind {before.kind}, "
            f"{arguments.after} of {after.kind}"
        )
    changes = list(differences(before, after, tolerance))
    if arguments.stable:
        changes = [change for change in changes if change.is_stable]
    if not changes:
        kind = "stable figure" if arguments.stable else "figure"
        raise ConfigError(
            f"neither {arguments.before} nor {arguments.after} holds any {kind}"
        )
    if all(change.before is None or change.after is None for change in changes):
        raise ConfigError(
            f"{arguments.before} and {arguments.after} have no figure in common: "
            f"the runs are {_names(before)}, and {_names(after)}"
        )
    lines = _report(before, after, changes)
    sys.stdout.write("\n".join(lines) + "\n")
    status = 0
    for change in changes:
        if not change.is_regression:
            continue
        status = 1
        outcome = f"{change.ratio:.3f} times what it was"
        if change.after is None:
            outcome = "gone"
        sys.stdout.write(f"REGRESSION: {change.run}: {change.name} is {outcome}\n")
    return status


def _names(record: Record) -> str:
    return ", ".join(record.runs) or "none"


def differences(
    before: Record,
    after: Record,
    tolerance: float,
) -> Iterator[Difference]:
    """Every figure of either record, in the order of the first."""
    for run in {**before.runs, **after.runs}:
        old_figures = before.runs.get(run, {})
        new_figures = after.runs.get(run, {})
        for name in {**old_figures, **new_figures}:
            old = old_figures.get(name)
            new = new_figures.get(name)
            yield _difference(run, name, old, new, tolerance)


def _difference(
    run: str,
    name: str,
    old: Figure | None,
    new: Figure | None,
    tolerance: float,
) -> Difference:
    if old is None:
        return Difference(run, name, old, new, math.nan, "new")
    if new is None:
        return Difference(run, name, old, new, math.nan, "gone")
    ratio = _ratio(old.value, new.value)
    verdict = _verdict(old, new, ratio, tolerance)
    return Difference(run, name, old, new, ratio, verdict)


def _ratio(old: float, new: float) -> float:
    if old == new:
        return 1.0
    if math.isinf(new) or not old:
        return math.inf
    if math.isinf(old):
        return 0.0
    return new / old


def _verdict(
    old: Figure,
    new: Figure,
    ratio: float,
    tolerance: float,
) -> str:
    if ratio == 1:
        return "same"
    # In either direction: for a figure of which more is better, a fall to 1 / tolerance
    # is as bad.
    is_near = 1 / tolerance <= ratio <= tolerance
    if old.stable and new.stable:
        if is_near:
            return "same"
    elif old.low == old.high and new.low == new.high:
        if is_near:  # measured once, so that nobody knows the noise
            return "noise"
    elif old.low <= new.high and new.low <= old.high:
        return "noise"
    is_larger = ratio > 1
    if is_larger == (old.better == "lower"):
        return "worse"
    return "better"


def _report(
    before: Record,
    after: Record,
    changes: list[Difference],
) -> Iterator[str]:
    for letter, side in (("A", before), ("B", after)):
        yield f"{letter}: {side.label}, {side.date}, {side.machine}; {side.command}"
    if before.machine != after.machine:
        yield (
            "The machines differ: only stable figures (marked *) "
            "say something about the code."
        )
    for name in sorted({*before.versions} | {*after.versions}):
        old = before.versions.get(name, "none")
        new = after.versions.get(name, "none")
        if old != new:
            yield f"{name} differs: {old} and {new}"
    yield ""
    last = None
    rows = []
    for change in changes:
        run = change.run if change.run != last else ""
        title = f"{change.name}*" if change.is_stable else change.name
        ratio = "-" if math.isnan(change.ratio) else f"{change.ratio:.3f}"
        before_text = show(change.before, bounds=True)
        after_text = show(change.after, bounds=True)
        rows.append((run, title, before_text, after_text, ratio, change.verdict))
        last = change.run
    yield aligned(("run", "figure", "A (noise)", "B (noise)", "B/A", ""), rows)
