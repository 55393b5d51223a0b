"""Attention over latents: the kernel beside gathered ways and a plain copy, on a GPU.

`python benchmarks/gpu_latent.py [--json FILE] [--tune] [--deadline SECONDS]`; needs
numpy, MLX and this checkout. The shape is DeepSeek-V2-Lite's: 16 heads, a latent of 512
elements and 64 rotated ones, 27 layers that take turns as they do in the model. Each
size is held against float32 before it is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet, default_backend
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.config import BLOCK
from rvllm_local.metal_kernels.decode import Tuning
from rvllm_local.metal_kernels.latent import latent_tuning
from rvllm_local.metal_kernels.proof.timing import copy_bandwidth, seconds
from rvllm_local.metal_kernels.splits import SplitRule

RANK, ROPE, LAYERS, SCALE = 512, 64, 27, 192**-0.5
KEY_DIM, VALUE_DIM = (
    192,
    128,
)  # of a head, where latents are expanded before they are kept
LOADS = ((16, 16384), (16, 2048), (1, 16384), (1, 2048))
CALLS = 54  # twice through the layers


@dataclass(frozen=True, slots=True)
class Row:
    """One way at one size; the rate is the latents' bytes over a copy's."""

    way: str
    rows: int
    context: int
    heads: int
    us: float
    of_copy: float
    error: float


class Bench:
    """Random latents of `rows` sequences in shuffled blocks, and a step's queries."""

    def __init__(self, rows: int, context: int, heads: int) -> None:
        self.rows, self.context, self.heads = rows, context, heads
        blocks = context // BLOCK
        config = KernelConfig(RANK, heads, 1, LAYERS, mx.bfloat16, mx.bfloat16, ROPE)
        self.config = config
        order = np.random.default_rng(0).permutation(np.arange(1, rows * blocks + 1))
        self.tables = order.reshape(rows, blocks)
        shape = config.arena_shape(rows * blocks + 1)
        self.arena = mx.random.normal(shape, dtype=mx.bfloat16)
        packed = layout.pack(
            [context] * rows, [0] * rows, self.tables.tolist(), query_len=1
        )
        self.descriptor = mx.array(packed)
        query = (rows, heads, 1)
        self.queries = mx.random.normal((*query, RANK), dtype=mx.bfloat16)
        self.rotated = mx.random.normal((*query, ROPE), dtype=mx.bfloat16)
        self.layers = [KernelSet.layer_index(layer) for layer in range(LAYERS)]
        mx.eval(self.arena, self.descriptor, self.queries, self.rotated, self.layers)

    @property
    def nbytes(self) -> int:
        """Of the latents that one layer's attention reads."""
        return self.rows * self.context * (RANK + ROPE) * 2

    def kernel(self, tuning: Tuning) -> tuple[float, float]:
        """The relative error, and seconds a call."""
        kernels = KernelSet(self.config, tuning=tuning)
        size = kernels.scratch_size(self.rows, 1, self.context // BLOCK)
        scratch = mx.zeros((max(8, size),))
        fence = kernels.first_fence()
        layers = itertools.cycle(self.layers)

        def attend() -> mx.array:
            nonlocal fence
            out, fence = kernels.latent_decode(
                self.queries,
                self.rotated,
                self.arena,
                None,
                self.descriptor,
                next(layers),
                fence,
                scratch,
                scale=SCALE,
            )
            return out

        error = self._error(attend())
        taken = seconds(attend, CALLS)
        return error, taken

    def _error(self, out: mx.array) -> float:
        """Of the first layer's first and last row, against float32."""
        worst = 0.0
        for row in (0, self.rows - 1):
            stored = self.arena[mx.array(self.tables[row]), 0]
            latents = stored[:, : BLOCK * RANK].reshape(-1, RANK).astype(mx.float32)
            rotated = stored[:, BLOCK * RANK :].reshape(-1, ROPE).astype(mx.float32)
            logits = _product(self.queries[row, :, 0], latents.T)
            logits = logits + _product(self.rotated[row, :, 0], rotated.T)
            weights = mx.softmax(logits * SCALE, axis=-1)
            expected = _product(weights, latents)
            difference = mx.abs(out[row, :, 0].astype(mx.float32) - expected)
            worst = max(worst, (difference.max() / mx.abs(expected).max()).item())
        return worst

    def gathered_latents(self) -> float:
        """Seconds of gathering latents and attending in MLX's operations.

        So mlx-lm's models with absorbed projections were served.
        """
        planes = mx.random.normal((self.rows * self.context // BLOCK, 2, BLOCK * RANK))
        planes = planes.astype(mx.bfloat16)
        index = mx.array(self.tables - 1)
        mx.eval(planes, index)

        def attend() -> mx.array:
            width = (self.rows, 1, self.context, RANK)
            latents = mx.take(planes[:, 0], index, axis=0).reshape(width)
            rotated = mx.take(planes[:, 1], index, axis=0).reshape(width)[..., :ROPE]
            bias = (self.rotated * SCALE) @ rotated.swapaxes(-1, -2)
            return mx.fast.scaled_dot_product_attention(
                self.queries, latents, latents, scale=SCALE, mask=bias
            )

        return seconds(attend, 4, rounds=3)

    def gathered_heads(self) -> float:
        """Seconds of gathering expanded keys and values of all heads and attending.

        So mlx-lm's deepseek_v2 and minicpm3 were served, which keep no latents.
        """
        blocks = self.rows * self.context // BLOCK
        planes = mx.random.normal(
            (blocks * self.heads, BLOCK * KEY_DIM), dtype=mx.bfloat16
        )
        heads = np.arange(self.heads)[None, :, None]
        index = mx.array((self.tables[:, None] - 1) * self.heads + heads)
        queries = mx.random.normal((self.rows, self.heads, 1, KEY_DIM))
        queries = queries.astype(mx.bfloat16)
        mx.eval(planes, index, queries)

        def attend() -> mx.array:
            width = (self.rows, self.heads, self.context, KEY_DIM)
            keys = mx.take(planes, index, axis=0).reshape(width)
            values = mx.take(planes, index, axis=0).reshape(width)[..., :VALUE_DIM]
            return mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=SCALE, mask=None
            )

        return seconds(attend, 2, rounds=3)


def _product(a: mx.array, b: mx.array) -> mx.array:
    """In float32, rounded nowhere in between as some devices' products are."""
    return (a.astype(mx.float32)[:, :, None] * b[None]).sum(axis=1)


def tunings(default: Tuning) -> list[Tuning]:
    """Mappings to hold against the default."""
    return [
        dataclasses.replace(default, splits=SplitRule(((8, 8), (64, 4)), 8)),
        dataclasses.replace(default, splits=SplitRule(((8, 8), (128, 8)), 32)),
        dataclasses.replace(default, simdgroups=8),
        dataclasses.replace(default, combined=8, slices=8),
        dataclasses.replace(default, simdgroups=4, step=32, resident=1),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--no-gathered", action="store_true")
    parser.add_argument("--deadline", type=float, default=90.0)
    options = parser.parse_args()
    if default_backend() == "none":
        print("no GPU that MLX can launch on: nothing to measure", file=sys.stderr)
        return 1
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name', 'unknown GPU')}")
    began = time.perf_counter()
    copy = copy_bandwidth(2**30)
    print(f"plain copy: {copy / 1e9:.0f} GB/s", flush=True)
    told: list[Row] = []

    def tell(bench: Bench, way: str, taken: float, error: float = 0.0) -> None:
        rate = bench.nbytes / taken / copy
        row = Row(way, bench.rows, bench.context, bench.heads, taken * 1e6, rate, error)
        told.append(row)
        print(
            f"{row.rows:>3} x {row.context:>6}, {row.heads} heads: {row.us:9.1f} us, "
            f"{row.of_copy:4.0%} of copy, error {row.error:.1e}, {way} "
            f"({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
        if options.json:
            record = {
                "copy_bytes_per_s": copy,
                "rows": [dataclasses.asdict(r) for r in told],
            }
            options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")

    for rows, context in LOADS:
        bench = Bench(rows, context, options.heads)
        default = latent_tuning(bench.config, "cuda")
        if default_backend() != "cuda":
            default = latent_tuning(bench.config, "metal")
        ways = [("kernel", default)]
        if options.tune:
            ways += [(str(tuning), tuning) for tuning in tunings(default)]
        for name, tuning in ways:
            if time.perf_counter() - began > options.deadline:
                print("deadline")
                return 0
            try:
                error, taken = bench.kernel(tuning)
            except (RuntimeError, ValueError) as failure:
                print(f"{name}: {str(failure)[:1500]}", flush=True)
                continue
            tell(bench, name, taken, error)
        if rows > 1 and not options.no_gathered:
            tell(bench, "gathered latents", bench.gathered_latents())
            tell(bench, "gathered heads", bench.gathered_heads())
    return 0


if __name__ == "__main__":
    sys.exit(main())
