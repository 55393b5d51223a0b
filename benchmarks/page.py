"""Writes the generated sections of docs/performance.md and README.md, and their plots, from benchmarks/results/*.json.

    python -m benchmarks.page            # rewrite them
    python -m benchmarks.page --check    # fail if they differ from what would be written

A section stands between `<!-- results: NAME -->` and `<!-- end -->`; all else on the page is left alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import gpu_page
from rvllm_local.bench import record
from rvllm_local.bench.metrics import Figure
from rvllm_local.bench.record import Record
from rvllm_local.bench.svg import Plot, draw
from rvllm_local.bench.text_table import markdown, number, show

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")
PLOTS = ROOT / "docs" / "images"
SERVERS = ("rvllm", "mlx-lm", "llama.cpp")
_SECTION = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)


def source(found: Record) -> str:
    """Where figures are from, as a line of text."""
    versions = ", ".join(
        f"{name} {value}"
        for name, value in found.versions.items()
        if name != "rvllm-local"
    )
    return f"{found.machine}; {versions}; {found.date}; `{found.command}`."


def rounds(found: Record) -> str:
    """How often each was run, and how quiet the machine was."""
    counts = sorted({row["rounds"] for row in found.details.values()})
    text = (
        " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        + f" round{'s' if counts[-1] > 1 else ''}. "
    )
    known = {
        name: [one for one in row["others_cpu"] if one is not None]
        for name, row in found.details.items()
    }
    shares = {name: max(row) for name, row in known.items() if row}
    if not shares:
        return text + "What other processes had of the cores is not known."
    noisy = max(shares, key=lambda name: shares[name])
    return (
        text
        + f"Other processes had at most {shares[noisy]:.0%} of the cores (during {noisy})."
    )


def ratio(ours: Figure | None, theirs: Figure | None) -> str:
    """Ours over theirs, or what can be said without a number."""
    if ours is None or theirs is None:
        return "-"
    if not theirs.value:
        return "-" if not ours.value else "theirs is 0"
    if theirs.value == float("inf"):
        return "-" if ours.value == float("inf") else "theirs failed"
    return (
        "failed" if ours.value == float("inf") else f"{ours.value / theirs.value:.2f}x"
    )


def capacity(found: Record) -> str:
    """Throughput with all requests at once."""
    names = (
        "requests",
        "errors",
        "tokens_per_s",
        "requests_per_s",
        "ttft_p50",
        "ttft_p99",
        "itl_p50",
        "itl_p99",
    )
    rows = [
        [
            server,
            *(show(run.get(name), bounds=name == "tokens_per_s") for name in names),
            show(run.get("peak_memory")),
        ]
        for server, run in _servers(found, "")
    ]
    heads = [
        "",
        "requests",
        "errors",
        "throughput (rounds)",
        "capacity",
        "TTFT P50",
        "P99",
        "ITL P50",
        "P99",
        "memory",
    ]
    ours = found.runs.get("rvllm", {}).get("tokens_per_s")
    told = [
        f"{ratio(ours, run.get('tokens_per_s'))} of {server}'s throughput"
        for server, run in _servers(found, "")
        if server != "rvllm"
    ]
    return f"{source(found)} {rounds(found)}\n\n{markdown(heads, rows)}" + (
        f"\n\nrvllm has {' and '.join(told)}." if told else ""
    )


def load(found: Record) -> str:
    """Latency of each server at each load, and rvllm's over theirs."""
    percents = sorted({int(name.partition("-")[0]) for name in found.runs})
    parts = [f"{source(found)} {rounds(found)}"]
    for percent in percents:
        runs = dict(_servers(found, f"{percent}-"))
        rate = next(iter(runs.values()))["rate"]
        parts.append(
            f"\n**{percent} % of rvllm's capacity** ({number(rate.value)} requests/s):\n"
        )
        names = (
            "ttft_p50",
            "ttft_p95",
            "ttft_p99",
            "itl_p50",
            "itl_p95",
            "itl_p99",
            "e2e_p99",
        )
        rows = [
            [server, *(show(run.get(name), bounds=name.endswith("p99")) for name in names),
             show(run["tokens_per_s"]), show(run["good_share"]), show(run["errors"])]
            for server, run in runs.items()
        ]  # fmt: skip
        heads = (
            "",
            "TTFT P50",
            "P95",
            "P99",
            "ITL P50",
            "P95",
            "P99",
            "end to end P99",
            "output",
            "good",
            "errors",
        )
        parts.append(markdown(heads, rows))
        for server in SERVERS[1:]:
            if server in runs and "rvllm" in runs:
                ratios = [
                    f"{title} {ratio(runs['rvllm'].get(name), runs[server].get(name))}"
                    for name, title in _COMPARED
                ]
                parts.append(f"\nrvllm over {server}: {', '.join(ratios)}.")
    return "\n".join(parts)


_COMPARED = (
    ("ttft_p99", "P99 TTFT"),
    ("itl_p99", "P99 inter-token"),
    ("tokens_per_s", "output"),
)


def agent(found: Record) -> str:
    """TTFT of an agent's turns."""
    rows = []
    for name, run in found.runs.items():
        server, _, phase = name.rpartition(" ")
        cells = [show(run[key], bounds=key == "later_ttft_p50") for key in _AGENT]
        rows.append([server, phase, *cells])
    heads = (
        "",
        "",
        "first turn",
        "later turns, median",
        "longest",
        "errors",
        "last prompt",
        "memory",
    )
    return f"{source(found)}\n\n{markdown(heads, rows)}\n\n![TTFT of each turn](images/agent_turns.svg)"


_AGENT = (
    "first_ttft",
    "later_ttft_p50",
    "later_ttft_max",
    "errors",
    "prompt_tokens",
    "peak_memory",
)


def memory(found: Record) -> str:
    """Memory over time."""
    names = (
        "minutes",
        "requests",
        "errors",
        "start_memory",
        "after_a_fifth",
        "end_memory",
        "peak_memory",
    )
    rows = [
        [server, *(show(run[name]) for name in names)]
        for server, run in _servers(found, "")
    ]
    heads = (
        "",
        "time",
        "requests",
        "errors",
        "start",
        "most in the first fifth",
        "end",
        "peak",
    )
    return f"{source(found)}\n\n{markdown(heads, rows)}\n\n![Memory over time](images/memory_over_time.svg)"


def brief(results: Path) -> str:
    """For the README: throughput of all at once, and P99 under load, a column a server."""
    rows, under_load = [], record.load(results / "load.json")
    measured = {name.rpartition("-")[2] for name in under_load.runs}
    servers = [name for name in SERVERS if name.rpartition("-")[2] in measured]
    if (path := results / "capacity.json").exists():
        runs = dict(_servers(record.load(path), ""))
        cells = _cells(servers, runs, "tokens_per_s")
        rows.append(["all requests at once, output", *cells])
    for percent in sorted({int(name.partition("-")[0]) for name in under_load.runs}):
        runs = dict(_servers(under_load, f"{percent}-"))
        for name, title in (("ttft_p99", "P99 TTFT"), ("itl_p99", "P99 inter-token")):
            cells = _cells(servers, runs, name)
            rows.append([f"{title} at {percent} % of rvllm's capacity", *cells])
    return f"{markdown(('', *servers), rows)}\n\n{source(under_load)}"


def _cells(
    servers: Sequence[str], runs: dict[str, dict[str, Figure]], name: str
) -> list[str]:
    return [show(runs.get(server, {}).get(name)) for server in servers]


SECTIONS: dict[str, Callable[[Record], str]] = {
    "capacity": capacity,
    "load": load,
    "agent": agent,
    "memory": memory,
    "gpu_kernels": lambda found: source(found) + gpu_page.kernels(found),
    "gpu_decode": lambda found: source(found) + gpu_page.decode(found),
    "gpu_mixed": lambda found: source(found) + gpu_page.mixed(found),
}


def _servers(found: Record, prefix: str) -> Iterator[tuple[str, dict[str, Figure]]]:
    for server in SERVERS:
        if f"{prefix}{server}" in found.runs:
            yield server, dict(found.runs[f"{prefix}{server}"])


def plots(results: Path) -> Iterator[tuple[str, str]]:
    """Each plot's file name and SVG."""
    if (path := results / "load.json").exists():
        found = record.load(path)
        for name, title in (
            ("ttft_p99", "P99 time to first token"),
            ("itl_p99", "P99 inter-token latency"),
        ):
            lines: dict[str, list[tuple[float, float]]] = {
                server: [] for server in SERVERS
            }
            for run, figures in found.runs.items():
                if name in figures:
                    lines[run.partition("-")[2]].append(
                        (figures["rate"].value, figures[name].value)
                    )
            plot = Plot(f"{title} against load", "requests/s", "seconds", is_log=True)
            yield (
                f"{name}.svg",
                draw(
                    plot,
                    {
                        server: sorted(points)
                        for server, points in lines.items()
                        if points
                    },
                ),
            )
    if (path := results / "agent.json").exists():
        turns = {
            name: [
                (float(index), value)
                for index, value in enumerate(row["ttft_s"], 1)
                if value is not None
            ]
            for name, row in record.load(path).details.items()
        }
        yield (
            "agent_turns.svg",
            draw(
                Plot("TTFT of each turn of an agent", "turn", "seconds", is_log=True),
                turns,
            ),
        )
    if (path := results / "memory.json").exists():
        sizes = {
            name: [
                (second / 60, float(megabytes))
                for second, megabytes in row["megabytes"]
            ]
            for name, row in record.load(path).details.items()
        }
        yield (
            "memory_over_time.svg",
            draw(Plot("Resident memory", "minutes", "MB", dots=False), sizes),
        )


def rendered(page: str, results: Path) -> str:
    """The page with its sections written anew; one whose results are not there stays."""

    def section(match: re.Match[str]) -> str:
        if match[2] == "brief":
            return (
                f"{match[1]}{brief(results)}\n{match[3]}"
                if (results / "load.json").exists()
                else match[0]
            )
        path = results / f"{match[2]}.json"
        return (
            f"{match[1]}{SECTIONS[match[2]](record.load(path))}\n{match[3]}"
            if path.exists()
            else match[0]
        )

    return _SECTION.sub(section, page)


def wanted(pages: Sequence[Path], results: Path) -> dict[Path, str]:
    """Every file as it should be: the pages, and the plots beside the first of them."""
    files = {
        page: rendered(page.read_text(encoding="utf-8"), results) for page in pages
    }
    return files | {
        pages[0].parent / PLOTS.name / name: text for name, text in plots(results)
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    files = wanted(PAGES, args.results)
    stale = [
        path
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if args.check:
        for path in stale:
            print(
                f"{path} differs from the results; run python -m benchmarks.page",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
