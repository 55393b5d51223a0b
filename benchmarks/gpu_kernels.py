"""GB/s of each kernel beside a plain copy in the same run, on an NVIDIA GPU with MLX's CUDA build.

`python benchmarks/gpu_kernels.py [--json FILE]`; needs numpy, MLX and this checkout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet, default_backend
from rvllm_local.metal_kernels import descriptor as layout

# rows, context, heads, kv heads, head size
SHAPES = ((16, 8192, 32, 8, 128), (16, 8192, 64, 8, 128), (64, 1024, 32, 8, 128), (64, 1024, 64, 8, 128),
          (1, 65536, 32, 8, 128), (64, 512, 32, 8, 64), (1, 512, 32, 8, 64))  # fmt: skip


def seconds(build: Callable[[], mx.array], calls: int) -> float:
    """Best time of one call, from batches of `calls` that the device runs back to back."""
    best = float("inf")
    for _ in range(6):
        outputs = [build() for _ in range(calls)]
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(outputs)
        mx.synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def copy_bandwidth() -> float:
    """Bytes read and written a second by a plain elementwise copy of 1 GiB."""
    source = mx.random.uniform(shape=(1 << 28,))
    mx.eval(source)
    return 2 * source.nbytes / seconds(lambda: mx.abs(source), 4)


def decode_time(shape: tuple[int, ...], kv_dtype: mx.Dtype) -> tuple[float, int]:
    """Seconds of one paged_decode (with its combine) and the KV bytes it must read."""
    rows, context, heads, kv_heads, head_dim = shape
    config = KernelConfig(head_dim, heads, kv_heads, 1, mx.bfloat16, kv_dtype)
    kernels, per_row = KernelSet(config), -(-context // 32)
    num_blocks = rows * per_row + 1
    scales = None
    if config.quantized:
        arena = mx.random.randint(-127, 128, config.arena_shape(num_blocks)).astype(mx.int8)
        scales = mx.random.uniform(0.001, 0.01, config.scales_shape(num_blocks))
        mx.eval(scales)
    else:
        arena = mx.random.normal(config.arena_shape(num_blocks), dtype=mx.bfloat16)
    order = np.random.default_rng(0).permutation(np.arange(1, num_blocks))
    packed = mx.array(layout.pack([context] * rows, [0] * rows, order.reshape(rows, per_row).tolist(), 1))
    queries = mx.random.normal((rows, heads, 1, head_dim), dtype=mx.bfloat16)
    layer, token = kernels.layer_index(0), kernels.first_token()
    mx.eval(arena, queries, packed, layer, token)
    read = 2 * rows * context * kv_heads * (head_dim * kv_dtype.size + (4 if config.quantized else 0))

    def build() -> mx.array:
        return kernels.paged_decode(queries, arena, scales, packed, layer, token, scale=head_dim**-0.5)

    mx.eval(build())
    return seconds(build, 20), read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if default_backend() != "cuda":
        print("no NVIDIA GPU with MLX's CUDA build here: nothing to measure", file=sys.stderr)
        return 1
    copy = copy_bandwidth()
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name', 'unknown GPU')}, copy {copy / 1e9:.0f} GB/s")
    print(
        f"{'rows x context':>16} {'group':>5} {'dim':>4} {'kv':>5} {'us':>8} {'GB/s':>6} {'of copy':>8} {'int8 gain':>9}"
    )
    table = []
    for shape in SHAPES:
        times = {}
        for name, dtype in (("bf16", mx.bfloat16), ("int8", mx.int8)):
            times[name], read = decode_time(shape, dtype)
            gain = times["bf16"] / times[name]
            rate = read / times[name]
            print(
                f"{f'{shape[0]} x {shape[1]}':>16} {shape[2] // shape[3]:>5} {shape[4]:>4} {name:>5} "
                f"{times[name] * 1e6:>8.1f} {rate / 1e9:>6.0f} {rate / copy:>8.0%} {gain:>9.2f}",
                flush=True,
            )
            table.append(
                {"shape": shape, "kv": name, "seconds": times[name], "bytes_per_s": rate, "of_copy": rate / copy}
            )
    if options.json:
        options.json.write_text(json.dumps({"copy_bytes_per_s": copy, "rows": table}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
