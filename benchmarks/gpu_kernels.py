"""GB/s of each kernel beside a plain copy in the same run, on an NVIDIA GPU with MLX's CUDA build.

`python benchmarks/gpu_kernels.py [--json FILE]`; needs numpy, MLX and this checkout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx

from benchmarks import gpu_record
from rvllm_local.bench.kernels import figures
from rvllm_local.metal_kernels import default_backend
from rvllm_local.metal_kernels.proof import bandwidth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if default_backend() == "none":
        print("no GPU that MLX can launch on: nothing to measure", file=sys.stderr)
        return 1
    copy, rows = bandwidth.measure()
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name', 'unknown GPU')}")
    print(bandwidth.table(copy, rows))
    decode = {
        (row.load, row.kv_dtype): row.seconds
        for row in rows
        if row.kernel == "paged_decode"
    }
    for (load, kv_dtype), taken in decode.items():
        if kv_dtype == "int8":
            print(f"int8 gain at {load.rows} x {load.context}, group {load.heads // load.kv_heads}: "
                  f"{decode[load, 'bf16'] / taken:.2f}x")  # fmt: skip
    if options.json:
        gpu_record.save(
            options.json, "gpu kernels", figures(rows), copy_bytes_per_s=copy
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
