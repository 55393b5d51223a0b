"""The quantized product alone: ours beside MLX's and a plain copy, on a GPU.

`python benchmarks/gpu_quantized.py [--json FILE] [--bits 4] [--group 64] [--tune]`;
needs numpy, MLX and this checkout. Shapes are those of Llama-3.1-8B. The weights of a
run are several copies, more than a cache holds, and each call takes the next copy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx

from rvllm_local.metal_kernels import default_backend
from rvllm_local.metal_kernels.proof import quantized
from rvllm_local.metal_kernels.proof.timing import copy_bandwidth, seconds
from rvllm_local.metal_kernels.quantized_matmul import (
    MatrixTuning,
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
    matrix_tuning,
)

SHAPES = (
    ("q, k and v", 6144, 4096),
    ("o", 4096, 4096),
    ("gate and up", 28672, 4096),
    ("down", 4096, 14336),
    ("head", 128256, 4096),
)
ROWS = (1, 2, 4, 8, 16, 32)
CALLS = 50
CACHE_BYTES = 256 * 2**20  # more than any GPU's cache
TUNINGS = (
    MatrixTuning(1, 8, 8, 2),
    MatrixTuning(1, 4, 8, 6),
    MatrixTuning(2, 8, 4, 3),
    MatrixTuning(2, 4, 8, 3),
    MatrixTuning(2, 4, 8, 4),
    MatrixTuning(2, 4, 4, 4),
    MatrixTuning(2, 2, 8, 8),
    MatrixTuning(4, 4, 4, 3),
)
TUNED_SHAPES = (SHAPES[0], SHAPES[2], SHAPES[3])


@dataclass(frozen=True, slots=True)
class Row:
    """One product at one number of rows; rates are bytes of weights over a copy's."""

    layer: str
    outs: int
    width: int
    rows: int
    ours_us: float
    mlx_us: float
    ours_of_copy: float
    mlx_of_copy: float
    difference: float
    tuning: str


def weights(outs: int, width: int, form: WeightFormat) -> list[PackedWeight]:
    """Copies of one layer's size, together larger than a cache."""
    nbytes = outs * width * form.bits // 8
    copies = []
    for _ in range(max(1, -(-CACHE_BYTES // nbytes))):
        dense = mx.random.normal((outs, width)).astype(mx.bfloat16)
        words, scales, biases = mx.quantize(
            dense, group_size=form.group_size, bits=form.bits
        )
        mx.eval(words, scales, biases)
        copies.append(PackedWeight(words, scales, biases, form))
    return copies


def plain(x: mx.array, weight: PackedWeight) -> mx.array:
    """MLX's own product."""
    return mx.quantized_matmul(
        x,
        weight.words,
        weight.scales,
        weight.biases,
        transpose=True,
        group_size=weight.format.group_size,
        bits=weight.format.bits,
    )


def timed(
    multiply: Callable[[mx.array, PackedWeight], mx.array],
    x: mx.array,
    copies: list[PackedWeight],
) -> float:
    """Seconds a call."""
    order = itertools.cycle(copies)
    mx.eval(multiply(x, copies[0]))
    return seconds(lambda: multiply(x, next(order)), CALLS)


def measure(form: WeightFormat, copy: float, *, tune: bool) -> Iterator[Row]:
    """Every layer at every number of rows; with `tune` in several mappings."""
    for layer, outs, width in TUNED_SHAPES if tune else SHAPES:
        copies = weights(outs, width, form)
        parts = (copies[0].words, copies[0].scales, copies[0].biases)
        nbytes = sum(part.nbytes for part in parts if part is not None)
        for rows in ROWS if not tune else (1, 8):
            x = mx.random.normal((rows, width)).astype(mx.bfloat16)
            theirs = timed(plain, x, copies)
            for tuning in TUNINGS if tune else (matrix_tuning(rows),):
                ours = QuantizedMatmul(tuning=tuning)
                expected = plain(x, copies[0]).astype(mx.float32)
                try:
                    difference = ours(x, copies[0]).astype(mx.float32) - expected
                    error = mx.abs(difference).max() / mx.abs(expected).max()
                    largest = error.item()
                    taken = timed(ours, x, copies)
                except RuntimeError as failure:
                    print(f"{layer}, {rows} rows, {tuning}: {failure}", flush=True)
                    continue
                yield Row(
                    layer,
                    outs,
                    width,
                    rows,
                    taken * 1e6,
                    theirs * 1e6,
                    nbytes / taken / copy,
                    nbytes / theirs / copy,
                    float(largest),
                    f"{tuning.tiles} tiles, {tuning.warps} warps, "
                    f"{tuning.run_words} words, {tuning.resident} resident",
                )
        del copies


def prove() -> None:
    """A few variants against float64, and rows alone and among others."""
    for product in quantized.PRODUCTS[:5]:
        try:
            error = quantized.check_product(product)
            quantized.check_rows_alone(product)
            print(
                f"{product.name}: error {error:.1e}, rows are independent", flush=True
            )
        except (AssertionError, RuntimeError) as failure:
            print(f"{product.name}: WRONG: {failure}"[:2000], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--group", type=int, default=64, choices=(32, 64, 128))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--no-proof", action="store_true")
    options = parser.parse_args()
    if default_backend() == "none":
        print("no GPU that MLX can launch on: nothing to measure", file=sys.stderr)
        return 1
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name', 'unknown GPU')}")
    if not options.no_proof:
        prove()
    copy = copy_bandwidth(2**30)
    print(f"plain copy: {copy / 1e9:.0f} GB/s", flush=True)
    rows: list[dict[str, object]] = []
    form = WeightFormat(options.bits, options.group)
    for row in measure(form, copy, tune=options.tune):
        print(
            f"{row.layer:<12} {row.rows:>2} rows: ours {row.ours_us:8.1f} us "
            f"({row.ours_of_copy:4.0%} of copy), MLX {row.mlx_us:8.1f} us "
            f"({row.mlx_of_copy:4.0%}), {row.mlx_us / row.ours_us:5.2f}x, "
            f"difference {row.difference:.1e}, {row.tuning}",
            flush=True,
        )
        rows.append(asdict(row))
        if options.json:
            record = {"copy_bytes_per_s": copy, "rows": rows}
            options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
