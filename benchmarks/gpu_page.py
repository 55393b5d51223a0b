"""What the generated sections about a GPU say after their source: the kernels alone, the decode loop, mixed requests."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from rvllm_local.bench.metrics import Figure
from rvllm_local.bench.record import Record
from rvllm_local.bench.text_table import markdown, show

_KERNEL_RUN = re.compile(r"(\w+) (\d+ x \d+), group (\d+), dim (\d+), (\w+)")
_MIXED = (
    ("seconds", "all of it"), ("tokens_per_s", "answer tokens/s"), ("ttft_p50", "TTFT P50"), ("ttft_p99", "TTFT P99"),
    ("gap_p50", "inter-token P50"), ("gap_p99", "inter-token P99"), ("gap_max", "longest gap"),
)  # fmt: skip


def kernels(found: Record) -> str:
    """`paged_decode` in both KV formats beside the copy, for head size 128."""
    by_load: dict[tuple[str, str], dict[str, dict[str, Figure]]] = {}
    for name, run in found.runs.items():
        match = _KERNEL_RUN.fullmatch(name)
        if match and match[1] == "paged_decode" and match[4] == "128":
            by_load.setdefault((match[2], match[3]), {})[match[5]] = dict(run)
    rows = [
        [load, group, show(runs["bf16"]["time"]), f"{runs['bf16']['of_copy'].value:.0%}", show(runs["int8"]["time"]),
         f"{runs['bf16']['time'].value / runs['int8']['time'].value:.2f}x"]
        for (load, group), runs in by_load.items()
    ]  # fmt: skip
    heads = ("rows x context", "group", "bf16", "of copy", "int8", "int8's gain")
    copy = found.details["copy_bytes_per_s"] / 1e9
    return f" A plain copy in the same run moved {copy:,.0f} GB/s.\n\n{markdown(heads, rows)}"


def decode(found: Record) -> str:
    """A decode step of both, with what each round gave."""
    rows = []
    for name, run in found.runs.items():
        pairs: list[tuple[float, float]] = found.details["rounds_ms"][name]
        each = ", ".join(
            f"{theirs:.2f} / {ours:.2f} = {theirs / ours:.2f}x"
            for theirs, ours in pairs
        )
        rows.append(
            [
                name,
                show(run["mlx_lm"]),
                show(run["rvllm"]),
                f"**{run['ratio'].value:.2f}x**",
                each,
            ]
        )
    heads = ("rows x context", "mlx-lm", "rvllm", "ratio, median", "rounds, ms")
    return f"\n\n{markdown(heads, rows)}"


def mixed(found: Record) -> str:
    """Throughput and tails of both."""
    return f"\n\n{markdown(('', 'mlx-lm', 'rvllm', 'ratio'), _mixed_rows(found))}"


def _mixed_rows(found: Record) -> Iterator[list[str]]:
    peer, engine = found.runs["mlx-lm"], found.runs["rvllm"]
    for name, title in _MIXED:
        over = engine[name].value / peer[name].value if peer[name].value else math.inf
        yield [title, show(peer[name]), show(engine[name]), f"{over:.2f}x"]
