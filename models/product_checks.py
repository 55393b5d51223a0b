"""Holds a kernel's quantized product against MLX's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.quantized_matmul import (
    MAX_ROWS,
    PackedWeight,
    QuantizedMatmul,
)

Product = Callable[[mx.array, PackedWeight], mx.array]

_CHECKED_ROWS = 4  # in a call of MLX's that a kernel is held against
# Of the largest result: both products round, and MLX's also rounds its weights.
_TOLERANCE = {
    mx.float32: 1e-4,
    mx.float16: 1e-2,
    mx.bfloat16: 4e-2,
}


def mlx_product(x: mx.array, weight: PackedWeight) -> mx.array:
    """MLX's own quantized product."""
    return mx.quantized_matmul(
        x,
        weight.words,
        scales=weight.scales,
        biases=weight.biases,
        transpose=True,
        group_size=weight.format.group_size,
        bits=weight.format.bits,
        mode=weight.format.mode,
    )


def in_pieces(kernel: Product, x: mx.array, weight: PackedWeight) -> mx.array:
    """The kernel's product of any number of rows."""
    if len(x) <= MAX_ROWS:
        return kernel(x, weight)
    parts = []
    for start in range(0, len(x), MAX_ROWS):
        parts.append(kernel(x[start : start + MAX_ROWS], weight))
    return mx.concatenate(parts, axis=0)


def product_fault(
    kernels: Sequence[QuantizedMatmul], x: mx.array, weight: PackedWeight
) -> str | None:
    """What is wrong with a kernel's product; None if nothing is."""
    for kernel in kernels:
        try:
            why = _difference(kernel, x, weight)
        except (RuntimeError, ValueError, UnsupportedModelError) as error:
            return f"the kernel fails: {error}"
        if why is not None:
            return why
    return None


def _difference(
    multiply: QuantizedMatmul, x: mx.array, weight: PackedWeight
) -> str | None:
    """What is wrong with the kernel's numbers beside MLX's; None if nothing is."""
    expected = _by_few_rows(x, weight).astype(mx.float32)
    given = in_pieces(multiply, x, weight).astype(mx.float32)
    error = mx.abs(given - expected).max()
    largest = mx.abs(expected).max()
    largest = mx.maximum(largest, 1e-6)
    relative = float(np.array(error / largest))
    if relative <= _TOLERANCE[x.dtype]:  # false for NaN
        return None
    return f"the kernel's product differs from MLX's by {relative:.1e} of its largest"


def _by_few_rows(x: mx.array, weight: PackedWeight) -> mx.array:
    """MLX's product, some rows a call.

    MLX compiles other kernels for more rows on CUDA, which takes it many seconds: no
    check needs them.
    """
    parts = []
    for start in range(0, len(x), _CHECKED_ROWS):
        parts.append(mlx_product(x[start : start + _CHECKED_ROWS], weight))
    return mx.concatenate(parts, axis=0)
