"""What the quantized products gain here: MLX's time beside ours, by layer and rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels.config import default_backend
from rvllm_local.metal_kernels.gathered_matmul import ExpertWeights, GatheredMatmul
from rvllm_local.metal_kernels.proof.timing import seconds
from rvllm_local.metal_kernels.quantized_matmul import (
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
)

ROWS = (1, 2, 4, 8, 16, 32)
FORMAT = WeightFormat(4, 64)
_CALLS = 20
_ROUNDS = 3
_EXPERTS_A_ROW = 8

Build = Callable[[], mx.array]
Timer = Callable[[Build], float]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's sizes; with `experts`, those of one expert."""

    name: str
    outs: int
    width: int
    experts: int = 0


LAYERS = (
    Layer("q, k and v of an 8B", 6144, 4096),
    Layer("down of an 8B", 4096, 14336),
    Layer("experts of a 30B-A3B", 768, 2048, 64),
)


@dataclass(frozen=True, slots=True)
class ProductTime:
    """Seconds of one product; `ours` is the quicker of our kernels, named by `kernel`."""

    layer: str
    rows: int
    mlx: float
    ours: float
    kernel: str

    @property
    def gain(self) -> float:
        return self.mlx / self.ours


def busy_seconds(build: Build) -> float:
    """A call's time on a busy device."""
    mx.eval(build())
    return seconds(build, _CALLS, _ROUNDS)


def measure_products(
    layers: Sequence[Layer] = LAYERS,
    rows: Sequence[int] = ROWS,
    *,
    timer: Timer = busy_seconds,
) -> Iterator[ProductTime]:
    """Each layer with 4-bit weights in groups of 64, at each number of rows."""
    dtype = mx.float16 if default_backend() == "metal" else mx.bfloat16
    for layer in layers:
        weight = _random_weight(layer, dtype)
        for count in rows:
            key = mx.random.key(count)
            x = mx.random.normal((count, layer.width), key=key)
            x = x.astype(dtype)
            mx.eval(x)
            theirs, ours = _calls(layer, weight, x)
            times = {}
            for name, call in ours.items():
                times[name] = timer(call)
            best = min(times, key=times.__getitem__)
            yield ProductTime(
                layer=layer.name,
                rows=count,
                mlx=timer(theirs),
                ours=times[best],
                kernel=best,
            )


def product_table(times: Sequence[ProductTime]) -> str:
    """The times as lines for people."""
    lines = [f"{'4-bit product':<24}{'rows':>5}{'MLX':>12}{'ours':>12}{'gain':>8}"]
    for time in times:
        lines.append(
            f"{time.layer:<24}{time.rows:>5}{time.mlx * 1e6:>9.0f} us"
            f"{time.ours * 1e6:>9.0f} us{time.gain:>7.2f}x  {time.kernel}"
        )
    return "\n".join(lines)


def _random_weight(layer: Layer, dtype: mx.Dtype) -> PackedWeight:
    size = (layer.outs * max(1, layer.experts), layer.width)
    key = mx.random.key(0)
    dense = mx.random.normal(size, key=key)
    dense = dense.astype(dtype)
    words, scales, biases = mx.quantize(
        dense, group_size=FORMAT.group_size, bits=FORMAT.bits
    )
    mx.eval(words, scales, biases)
    return PackedWeight(words, scales, biases, FORMAT)


def _calls(
    layer: Layer,
    weight: PackedWeight,
    x: mx.array,
) -> tuple[Build, dict[str, Build]]:
    """MLX's call, and ours by the kernel's name."""
    if layer.experts:
        return _expert_calls(layer, weight, x)
    theirs = functools.partial(
        mx.quantized_matmul,
        x,
        weight.words,
        weight.scales,
        weight.biases,
        transpose=True,
        group_size=FORMAT.group_size,
        bits=FORMAT.bits,
    )
    ours: dict[str, Build] = {}
    if default_backend() != "cuda":
        matrices = QuantizedMatmul(matrix_rows=1)
        ours["simdgroup matrices"] = functools.partial(matrices, x, weight)
    name = "matrix units" if default_backend() == "cuda" else "lanes"
    ours[name] = functools.partial(QuantizedMatmul(), x, weight)
    return theirs, ours


def _expert_calls(
    layer: Layer,
    weight: PackedWeight,
    x: mx.array,
) -> tuple[Build, dict[str, Build]]:
    random = np.random.default_rng(len(x))
    by_row = []
    for _ in range(len(x)):
        order = random.permutation(layer.experts)
        by_row.append(order[:_EXPERTS_A_ROW])
    experts = mx.array(np.stack(by_row).astype(np.uint32))
    size = (layer.experts, layer.outs, -1)
    assert weight.biases is not None
    words = weight.words.reshape(size)
    scales = weight.scales.reshape(size)
    biases = weight.biases.reshape(size)
    mx.eval(experts, words, scales, biases)
    theirs = functools.partial(
        mx.gather_qmm,
        x[:, None, None],
        words,
        scales,
        biases,
        rhs_indices=experts,
        transpose=True,
        group_size=FORMAT.group_size,
        bits=FORMAT.bits,
    )
    weights = ExpertWeights(weight, layer.experts)
    ours = functools.partial(GatheredMatmul(), x, weights, experts.reshape(-1))
    return theirs, {"gathered": ours}
