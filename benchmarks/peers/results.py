"""Raw results of runs beside the peers, and how they are pooled into the small records that the documentation is made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import llama_server
from rvllm_local.bench import record
from rvllm_local.bench.load import Run
from rvllm_local.bench.metrics import (
    Figure,
    Slo,
    exact,
    failures,
    intervals,
    percentile,
    summary,
)
from rvllm_local.bench.outcome import Outcome
from rvllm_local.bench.text_table import show

KEPT_SAMPLES = 300  # points of a line of memory
Raw = Mapping[str, Any]


def raw(found: Run, **more: Any) -> dict[str, Any]:
    """A run as JSON."""
    rows = [outcome.to_row() for outcome in found.outcomes]
    head = {
        "date": record.new_record("raw", {}).date,
        "machine": record.machine(),
        "versions": record.versions(),
    }
    return {
        **head,
        **more,
        "wall_s": found.wall_s,
        "samples": found.samples,
        "rows": rows,
    }


def load_raw(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def outcomes(row: Raw) -> list[Outcome]:
    return [Outcome.from_row(one) for one in row["rows"]]


def line(row: Raw) -> str:
    """One run in a line, for the terminal."""
    if "rows" not in row:
        return "; ".join(f"{phase}: {line(one)}" for phase, one in row.items())
    found = summary(outcomes(row), row["wall_s"], Slo())
    names = ("tokens_per_s", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "errors")
    text = ", ".join(f"{name} {show(found.get(name))}" for name in names)
    others = (
        ""
        if row.get("others_cpu") is None
        else f", others had {row['others_cpu']:.0%} of the cores"
    )
    return f"{text}, wall {row['wall_s']:.0f} s{others}"


def pool(folder: Path, target: Path) -> None:
    """Write benchmarks/results/{capacity,load,agent,memory}.json from what is there."""
    target.mkdir(parents=True, exist_ok=True)
    raws = {path.stem: load_raw(path) for path in sorted(folder.glob("*.json"))}
    for kind, make in (
        ("capacity", _rounds),
        ("load", _rounds),
        ("agent", _agent),
        ("memory", _memory),
    ):
        found = {name: row for name, row in raws.items() if name.startswith(f"{kind}-")}
        if found:
            parts = [part for row in found.values() for part in _parts(row)]
            runs, details = make(found)
            versions = {
                name: _together(part["versions"].get(name, "none") for part in parts)
                for name in parts[0]["versions"]
            }
            if any("llama.cpp" in name for name in found):
                versions["llama.cpp"] = llama_server.version()
            command = f"python -m benchmarks.beside_peers {kind}"
            row = next(iter(found.values()))
            if kind == "memory":
                command += f" --memory-rate {row['rate']:g}"
            elif "rows" in row:
                rounds = max(int(name.rpartition("-")[2]) for name in found)
                command += f" --requests {len(row['rows'])} --rounds {rounds}"
            machine, dates = (
                _together(part["machine"] for part in parts),
                sorted({part["date"] for part in parts}),
            )
            date = " to ".join(dict.fromkeys((dates[0], dates[-1])))
            made = record.Record(
                kind, runs, "peers", details, machine, versions, date, command
            )
            made.save(target / f"{kind}.json")


def _together(values: Iterable[str]) -> str:
    """What all say, or everything that one of them says: figures from two machines are not from the first alone."""
    return " and ".join(dict.fromkeys(values))


def _parts(row: Raw) -> Iterator[Raw]:
    if "rows" in row:
        yield row
    else:
        yield from row.values()


def _rounds(
    found: Mapping[str, Raw],
) -> tuple[dict[str, dict[str, Figure]], dict[str, Any]]:
    """The rounds of a server and load, pooled: percentiles over all their requests."""
    groups: dict[str, list[Raw]] = {}
    for name, row in found.items():
        groups.setdefault(name.rpartition("-")[0].partition("-")[2], []).append(row)
    runs, details = {}, {}
    for name, rows in groups.items():
        together = [outcome for row in rows for outcome in outcomes(row)]
        runs[name] = summary(together, sum(row["wall_s"] for row in rows), Slo())
        speeds = [
            sum(one.tokens for one in outcomes(row) if not one.failure) / row["wall_s"]
            for row in rows
        ]
        runs[name]["tokens_per_s"] = dataclasses.replace(
            runs[name]["tokens_per_s"], low=min(speeds), high=max(speeds)
        )
        runs[name]["peak_memory"] = exact(
            max(value for row in rows for _, value in row["samples"]), "bytes"
        )
        if rate := rows[0].get("rate"):
            runs[name]["rate"] = exact(rate, "/s", "higher")
        details[name] = {
            "rounds": len(rows),
            "others_cpu": [
                None if (share := row.get("others_cpu")) is None else round(share, 3)
                for row in rows
            ],
            "failures": failures(together),
            "walls_s": [row["wall_s"] for row in rows],
        }
    return runs, details


def _agent(
    found: Mapping[str, Raw],
) -> tuple[dict[str, dict[str, Figure]], dict[str, Any]]:
    """TTFT of the first turn and of those after it, by server and phase; each turn's in the details."""
    runs, details = {}, {}
    for name, phases in found.items():
        server = name.partition("-")[2]
        for phase, row in phases.items():
            turns = outcomes(row)
            times = [float("inf") if one.failure else one.ttft or 0.0 for one in turns]
            runs[f"{server} {phase}"] = {
                "first_ttft": exact(times[0], "s"), **_later(times[1:]),
                "errors": exact(sum(one.failure is not None for one in turns), ""),
                "prompt_tokens": exact(turns[-1].usage.prompt or 0, "tokens"),
                "peak_memory": exact(max(value for _, value in row["samples"]), "bytes"),
            }  # fmt: skip
            details[f"{server} {phase}"] = {
                "ttft_s": [
                    round(value, 4) if value < float("inf") else None for value in times
                ],
                "cached_tokens": [one.usage.cached for one in turns],
                "prompt_tokens": [one.usage.prompt for one in turns],
            }
    return runs, details


def _later(times: Sequence[float]) -> dict[str, Figure]:
    import numpy as np

    groups = [np.asarray([value]) for value in times]
    ((low, high),) = intervals(groups, (50,))
    return {
        "later_ttft_p50": Figure(percentile(np.asarray(times), 50), "s", low, high),
        "later_ttft_max": exact(max(times), "s"),
    }


def _memory(
    found: Mapping[str, Raw],
) -> tuple[dict[str, dict[str, Figure]], dict[str, Any]]:
    """Peak, first and last memory of each server, and its line, thinned."""
    runs, details = {}, {}
    for name, row in found.items():
        server, samples = name.partition("-")[2], row["samples"]
        fifth = max(1, len(samples) // 5)
        answered = [one for one in outcomes(row) if one.failure is None]
        runs[server] = {
            "peak_memory": exact(max(value for _, value in samples), "bytes"),
            "start_memory": exact(samples[0][1], "bytes"),
            "after_a_fifth": exact(max(value for _, value in samples[:fifth]), "bytes"),
            "end_memory": exact(samples[-1][1], "bytes"),
            "requests": exact(len(row["rows"]), "", "higher"),
            "errors": exact(len(row["rows"]) - len(answered), ""),
            "minutes": exact(round(row["wall_s"] / 60, 1), "min", "higher"),
        }
        step = max(1, len(samples) // KEPT_SAMPLES)
        thinned = [
            samples[index : index + step] for index in range(0, len(samples), step)
        ]
        line = [
            [round(part[0][0], 1), round(max(value for _, value in part) / 1e6)]
            for part in thinned
        ]
        details[server] = {"megabytes": line}
    return runs, details
