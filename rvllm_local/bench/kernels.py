"""`rvllm bench kernels`: GB/s of each kernel beside a plain copy, on Metal or CUDA."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rvllm_local import host
from rvllm_local.bench import record
from rvllm_local.bench.metrics import Figure, exact

if TYPE_CHECKING:
    from rvllm_local.metal_kernels.proof.bandwidth import Measured


def kernels(arguments: Namespace) -> int:
    """Measure and print; exit status 1 where no kernel can run."""
    record.check_writable(arguments.json)
    host.prepare()
    from rvllm_local.metal_kernels import default_backend
    from rvllm_local.metal_kernels.proof import bandwidth

    backend = default_backend()
    if backend == "none":
        sys.stderr.write(
            "rvllm: no Metal or CUDA device: the kernels cannot run here. On a CPU the engine uses plain MLX operations; "
            "measure those with rvllm bench decode\n"
        )
        return 1
    copy, rows = bandwidth.measure(scale=1 if backend == "cuda" else 4)
    sys.stdout.write(bandwidth.table(copy, rows) + "\n")
    if arguments.json:
        record.new_record(
            "kernels", figures(rows), backend=backend, copy_bytes_per_s=copy
        ).save(Path(arguments.json))
    return 0


def figures(rows: Sequence[Measured]) -> dict[str, dict[str, Figure]]:
    """The figures of each kernel at each load, by name."""
    runs = {}
    for row in rows:
        load = row.load
        name = f"{row.kernel} {load.rows} x {load.context}, group {load.heads // load.kv_heads}, dim {load.head_dim}, {row.kv_dtype}"
        runs[name] = {
            "time": exact(row.seconds, "s"),
            "bytes_per_s": exact(row.bytes_per_s / 1e9, "GB/s", "higher"),
            "of_copy": exact(row.of_copy, "", "higher"),
        }
    return runs
