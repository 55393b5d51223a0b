"""`rvllm bench serve`: traces at one or several rates against one endpoint, as a table, JSON and a plot."""

from __future__ import annotations

import functools
import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rvllm_local.bench import arguments as bench_arguments
from rvllm_local.bench import load, record, trace
from rvllm_local.bench.load import Run
from rvllm_local.bench.metrics import Figure, Slo, exact, failures, percentile, summary
from rvllm_local.bench.outcome import CountTokens, Outcome
from rvllm_local.bench.processes import Bystanders, check_pid, resident
from rvllm_local.bench.svg import Plot, draw
from rvllm_local.bench.text_table import aligned, number, show

_MOST_OTHERS = 0.05
_MOST_LAG_S = 0.05
_MOST_TOGETHER = 0.2
_ENOUGH = 100  # requests, below which P99 is the slowest
COLUMNS = (
    "ttft_p50",
    "ttft_p95",
    "ttft_p99",
    "itl_p50",
    "itl_p95",
    "itl_p99",
    "e2e_p50",
    "e2e_p95",
    "e2e_p99",
)
TOTALS = (
    "requests",
    "errors",
    "tokens_per_s",
    "goodput",
    "cached_tokens",
    "peak_memory",
)


def serve(arguments: Namespace) -> int:
    """Run, print and write; exit status 1 if every request failed."""
    slo, made = bench_arguments.check(arguments), bench_arguments.trace_from(arguments)
    count = tokenizer(arguments.tokenizer)
    if arguments.pid is not None:
        check_pid(arguments.pid)
    endpoint = bench_arguments.endpoint_from(arguments)
    if arguments.save_trace:
        trace.save(
            made if arguments.recorded else made.at_rate(arguments.rate[0]),
            Path(arguments.save_trace),
        )
    runs: dict[str, dict[str, Figure]] = {}
    details: dict[str, Any] = {}
    for rate in arguments.rate:
        name = made.name if arguments.recorded else f"{made.name} at {rate:g}/s"
        others = None if arguments.pid is None else Bystanders(arguments.pid)
        stopped = None
        try:
            found = load.run(
                endpoint,
                made if arguments.recorded else made.at_rate(rate),
                sampler(arguments.pid),
            )
        except load.Interrupted as error:
            stopped, found, name = error, error.run, f"{name} (interrupted)"
        if stopped is not None and not found.outcomes:
            raise stopped
        share = None if others is None else others.share()
        recheck(found.outcomes, count)
        runs[name] = figures(found, slo, rate)
        details[name] = {
            "failures": failures(found.outcomes),
            "wall_s": found.wall_s,
            "others_cpu": share,
        }
        if arguments.rows:
            details[name]["rows"] = [outcome.to_row() for outcome in found.outcomes]
        say(
            f"{name}\n{report(runs[name])}{warnings(found, share)}{_stop_note(stopped, made)}\n"
        )
        _write(arguments, runs, details)  # now: what comes later may be interrupted
        if stopped is not None:
            raise stopped
    return (
        1
        if all(run["errors"].value == run["requests"].value for run in runs.values())
        else 0
    )


def figures(found: Run, slo: Slo, rate: float) -> dict[str, Figure]:
    """All figures of one run."""
    busy = {"client_busy_p99": exact(found.busy_s, "s")}
    return {
        **summary(found.outcomes, found.wall_s, slo),
        **peak(found),
        **busy,
        "rate": exact(rate, "/s", "higher"),
    }


def _write(
    arguments: Namespace,
    runs: Mapping[str, Mapping[str, Figure]],
    details: Mapping[str, Any],
) -> None:
    if arguments.json:
        record.new_record("serve", runs, arguments.label, **details).save(
            Path(arguments.json)
        )
    if arguments.svg:
        Path(arguments.svg).write_text(plot(runs), encoding="utf-8")


def _stop_note(stopped: load.Interrupted | None, made: trace.Trace) -> str:
    """What the figures of an interrupted run leave out."""
    if stopped is None:
        return ""
    ended = len(stopped.run.outcomes)
    return (
        f"\ninterrupted: {ended} of {made.num_requests} requests had ended; {stopped.num_open} open ones are left out, "
        "so that these figures are better than the whole run's"
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tokenizer(name: str | None) -> CountTokens | None:
    """Counts the tokens of an answer with an installed model's own tokenizer."""
    if name is None:
        return None
    from rvllm_local.models.locate import locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    encode = read_tokenizer(locate(name)).encode
    return lambda text: len(encode(text, bos=False))


def recheck(outcomes: list[Outcome], count: CountTokens | None) -> None:
    """Hold the usage against the text's own tokens: after the run, since it takes time."""
    for outcome in outcomes if count is not None else ():
        outcome.check(count)


def sampler(pid: int | None) -> load.Sample | None:
    """Reads the server's memory, if its process is known."""
    return None if pid is None else functools.partial(resident, pid)


def peak(found: Run) -> dict[str, Figure]:
    """The most memory that was seen; nothing if it was not looked at."""
    if not found.samples:
        return {}
    return {"peak_memory": exact(max(value for _, value in found.samples), "bytes")}


def report(run: Mapping[str, Figure]) -> str:
    """The table of one run."""
    lines = [
        [
            name.upper(),
            *(
                show(run.get(f"{name}_p{percent}"), bounds=True)
                for percent in (50, 95, 99)
            ),
        ]
        for name in ("ttft", "itl", "e2e")
    ]
    totals = ", ".join(
        f"{name.replace('_', ' ')} {show(run.get(name))}" for name in TOTALS
    )
    return aligned(("", "P50 (95 % interval)", "P95", "P99"), lines) + f"\n{totals}"


def warnings(run: Run, others_cpu: float | None = None) -> str:
    """What a reader should know before believing the table."""
    outcomes = run.outcomes
    found = [
        f"\nerrors: {count} x {name}" for name, count in failures(outcomes).items()
    ]
    first = next((one for one in outcomes if one.failure is not None), None)
    if first is not None:
        found.append(f"\nfirst error: {first.failure}: {first.detail}")
    whole = [one for one in outcomes if one.failure is None]
    found += _about_answers(whole)
    if 0 < len(outcomes) < _ENOUGH:
        found.append(
            f"\nfew requests ({len(outcomes)}): P99 of TTFT and end to end is the slowest, P95 one of the slowest"
        )
    lag = (
        percentile(np.asarray([one.sent - one.scheduled for one in outcomes]), 99)
        if outcomes
        else 0.0
    )
    if max(lag, run.busy_s) > _MOST_LAG_S:
        found.append(
            f"\nthis client was late itself: by {number(lag, 's')} with sending, by {number(run.busy_s, 's')} with "
            "reading (P99), which the latencies hold: use a lower rate or another machine for it"
        )
    if run.samples and not run.samples[-1][1]:
        found.append(
            "\nthe process of --pid ended meanwhile: the peak memory is of the time before"
        )
    if others_cpu is not None and others_cpu > _MOST_OTHERS:
        found.append(
            f"\nother processes had {others_cpu:.0%} of the cores meanwhile: measure again on a quiet machine"
        )
    return "".join(found)


def _about_answers(whole: list[Outcome]) -> Iterator[str]:
    """What is odd about the answers that came whole."""
    if short := sum(one.tokens < one.max_tokens for one in whole):
        mean = sum(one.tokens for one in whole) / len(whole)
        yield f"\n{short} answers ended early (mean length {mean:.1f} tokens): compare with care"
    if silent := sum(one.usage.completion is None for one in whole):
        yield f"\n{silent} answers came without usage: their tokens are counted by events"
    said, seen = sum(one.tokens for one in whole), sum(len(one.times) for one in whole)
    if seen and not 0.9 < said / seen < 1.1:
        yield f"\nusage says {said} tokens, {seen} events came: inter-token latency is between events"
    together = sum(len(one.times) - 1 - len(one.gaps) for one in whole)
    if together > _MOST_TOGETHER * seen:
        yield f"\n{together} of {seen} events came at once with the one before, as from a buffer: these make no gap"


def plot(runs: Mapping[str, Mapping[str, Figure]]) -> str:
    """Latency against load, P99 and P50 of TTFT and of inter-token latency."""
    lines = {}
    for name, title in (("ttft", "TTFT"), ("itl", "inter-token")):
        for percent in (50, 99):
            key = f"{name}_p{percent}"
            points = [
                (run["rate"].value, run[key].value)
                for run in runs.values()
                if key in run
            ]
            lines[f"{title} P{percent}"] = sorted(
                point for point in points if math.isfinite(point[0])
            )
    return draw(
        Plot("Latency against load", "requests/s", "seconds", is_log=True), lines
    )
