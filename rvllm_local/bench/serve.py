"""`rvllm bench serve`: traces at one or several rates against one endpoint, as a table, JSON and a plot."""

from __future__ import annotations

import functools
import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.bench import arguments as bench_arguments
from rvllm_local.bench import load, record, trace
from rvllm_local.bench.load import Run
from rvllm_local.bench.metrics import (
    PERCENTILES,
    Figure,
    Slo,
    exact,
    failures,
    sending_lag,
    summary,
)
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
    slo = bench_arguments.check(arguments)
    made = bench_arguments.trace_from(arguments)
    count = tokenizer(arguments.tokenizer)
    if arguments.pid is not None:
        check_pid(arguments.pid)
    endpoint = bench_arguments.endpoint_from(arguments)
    if arguments.save_trace:
        first = made if arguments.recorded else made.at_rate(arguments.rate[0])
        trace.save(first, Path(arguments.save_trace))
    runs: dict[str, dict[str, Figure]] = {}
    details: dict[str, Any] = {}
    for rate in arguments.rate:
        measured = _measure(arguments, endpoint, made, rate)
        run, name = measured.run, measured.name
        recheck(run.outcomes, count)
        runs[name] = figures(run, slo, rate)
        details[name] = _details(measured, rows=arguments.rows)
        notes = warnings(run, measured.others_cpu) + _stop_note(measured.stopped, made)
        say(f"{name}\n{report(runs[name])}{notes}\n")
        _write(arguments, runs, details)  # now: what comes later may be interrupted
        if measured.stopped is not None:
            raise measured.stopped
    has_answers = [row["errors"].value < row["requests"].value for row in runs.values()]
    return 0 if any(has_answers) else 1


@dataclass(frozen=True, slots=True)
class _Measured:
    """A run at one rate; `stopped` if Ctrl-C ended it, `others_cpu` if it is known."""

    name: str
    run: Run
    others_cpu: float | None
    stopped: load.Interrupted | None


def _measure(
    arguments: Namespace,
    endpoint: load.Endpoint,
    made: trace.Trace,
    rate: float,
) -> _Measured:
    """Send the trace at one rate. Raises `Interrupted` if nothing had ended by then."""
    name = made.name
    if not arguments.recorded:
        name, made = f"{made.name} at {rate:g}/s", made.at_rate(rate)
    others = None if arguments.pid is None else Bystanders(arguments.pid)
    stopped = None
    try:
        run = load.run(endpoint, made, sampler(arguments.pid))
    except load.Interrupted as error:
        if not error.run.outcomes:
            raise
        stopped, run, name = error, error.run, f"{name} (interrupted)"
    share = None if others is None else others.share()
    return _Measured(name, run, share, stopped)


def _details(measured: _Measured, *, rows: bool) -> dict[str, Any]:
    """What the JSON holds beside the figures; with `rows` every request."""
    run = measured.run
    details: dict[str, Any] = {
        "failures": failures(run.outcomes),
        "wall_s": run.wall_s,
        "others_cpu": measured.others_cpu,
    }
    if rows:
        details["rows"] = [outcome.to_row() for outcome in run.outcomes]
    return details


def figures(
    run: Run,
    slo: Slo,
    rate: float,
) -> dict[str, Figure]:
    """All figures of one run."""
    busy = {"client_busy_p99": exact(run.busy_s, "s")}
    return {
        **summary(run.outcomes, run.wall_s, slo),
        **peak(run),
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


def peak(run: Run) -> dict[str, Figure]:
    """The most memory that was seen; nothing if it was not looked at."""
    if not run.samples:
        return {}
    return {"peak_memory": exact(max(value for _, value in run.samples), "bytes")}


def report(run: Mapping[str, Figure]) -> str:
    """The table of one run."""
    lines = []
    for name in ("ttft", "itl", "e2e"):
        line = [name.upper()]
        for percent in PERCENTILES:
            figure = run.get(f"{name}_p{percent}")
            line.append(show(figure, bounds=True))
        lines.append(line)
    totals = []
    for name in TOTALS:
        title = name.replace("_", " ")
        totals.append(f"{title} {show(run.get(name))}")
    table = aligned(("", "P50 (95 % interval)", "P95", "P99"), lines)
    return f"{table}\n{', '.join(totals)}"


def warnings(run: Run, others_cpu: float | None = None) -> str:
    """What a reader should know before believing the table."""
    outcomes = run.outcomes
    notes = [
        f"\nerrors: {count} x {name}" for name, count in failures(outcomes).items()
    ]
    first = next((outcome for outcome in outcomes if outcome.failure is not None), None)
    if first is not None:
        notes.append(f"\nfirst error: {first.failure}: {first.detail}")
    whole = [outcome for outcome in outcomes if outcome.failure is None]
    notes += _about_answers(whole)
    if 0 < len(outcomes) < _ENOUGH:
        notes.append(
            f"\nfew requests ({len(outcomes)}): P99 of TTFT and end to end is the slowest, P95 one of the slowest"
        )
    lag = sending_lag(outcomes) if outcomes else 0.0
    if max(lag, run.busy_s) > _MOST_LAG_S:
        notes.append(
            f"\nthis client was late itself: by {number(lag, 's')} with sending, by {number(run.busy_s, 's')} with "
            "reading (P99), which the latencies hold: use a lower rate or another machine for it"
        )
    if run.samples and not run.samples[-1][1]:
        notes.append(
            "\nthe process of --pid ended meanwhile: the peak memory is of the time before"
        )
    if others_cpu is not None and others_cpu > _MOST_OTHERS:
        notes.append(
            f"\nother processes had {others_cpu:.0%} of the cores meanwhile: measure again on a quiet machine"
        )
    return "".join(notes)


def _about_answers(whole: list[Outcome]) -> Iterator[str]:
    """What is odd about the answers that came whole."""
    if short := sum(answer.tokens < answer.max_tokens for answer in whole):
        mean = sum(answer.tokens for answer in whole) / len(whole)
        yield f"\n{short} answers ended early (mean length {mean:.1f} tokens): compare with care"
    if silent := sum(answer.usage.completion is None for answer in whole):
        yield f"\n{silent} answers came without usage: their tokens are counted by events"
    said, seen = (
        sum(answer.tokens for answer in whole),
        sum(len(answer.times) for answer in whole),
    )
    if seen and not 0.9 < said / seen < 1.1:
        yield f"\nusage says {said} tokens, {seen} events came: inter-token latency is between events"
    together = sum(len(answer.times) - 1 - len(answer.gaps) for answer in whole)
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
