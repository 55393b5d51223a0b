"""Checks of the quantized products against float64, wherever they can be launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels.proof.oracle import TOLERANCE, Floats, error, floats
from rvllm_local.metal_kernels.quantized_matmul import (
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
)

Make = Callable[[], QuantizedMatmul]


@dataclass(frozen=True, slots=True)
class Product:
    """One variant: the format, the sizes and the rows that are tried."""

    name: str
    format: WeightFormat
    width: int
    outs: int
    dtype: mx.Dtype
    rows: tuple[int, ...] = (1, 3, 8)


F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
PRODUCTS = (
    Product("4-g64-bf16", WeightFormat(4, 64), 1088, 37, BF16, (1, 2, 5, 9, 32)),
    Product("4-g32-f16", WeightFormat(4, 32), 160, 70, F16, (1, 4, 17)),
    Product("4-g128-bf16", WeightFormat(4, 128), 1280, 33, BF16, (1, 16)),
    Product("4-g64-f32", WeightFormat(4, 64), 192, 9, F32, (1, 7, 31)),
    Product("8-g64-bf16", WeightFormat(8, 64), 576, 40, BF16, (1, 6, 20)),
    Product("8-g32-f16", WeightFormat(8, 32), 1056, 35, F16, (1, 8)),
    Product("8-g128-f16", WeightFormat(8, 128), 384, 16, F16, (2, 9)),
    Product("mxfp4-bf16", WeightFormat(4, 32, "mxfp4"), 1056, 11, BF16, (1, 3)),
    Product("mxfp4-f32", WeightFormat(4, 32, "mxfp4"), 64, 8, F32, (1, 12)),
    Product("2-g64-f16", WeightFormat(2, 64), 256, 10, F16, (1, 5)),
    Product("3-g64-bf16", WeightFormat(3, 64), 1152, 9, BF16, (1, 4)),
    Product("5-g32-f32", WeightFormat(5, 32), 96, 8, F32, (2,)),
    Product("6-g128-f16", WeightFormat(6, 128), 256, 12, F16, (1, 16)),
)


def packed_weight(product: Product, seed: int = 0) -> PackedWeight:
    """A random weight in the product's format, packed by MLX."""
    random = np.random.default_rng(seed)
    dense = random.standard_normal((product.outs, product.width), dtype=np.float32)
    form = product.format
    parts = mx.quantize(
        mx.array(dense).astype(product.dtype),
        group_size=form.group_size,
        bits=form.bits,
        mode=form.mode,
    )
    biases = parts[2] if len(parts) == 3 else None
    mx.eval(*parts)
    return PackedWeight(parts[0], parts[1], biases, form)


def dense_weight(weight: PackedWeight) -> Floats:
    """The packed weight as float64 `[out, in]`, unpacked on the host."""
    form = weight.format
    words = np.array(weight.words)
    octets = words.view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    per_weight = bits.reshape(len(words), -1, form.bits).astype(np.int64)
    values = (per_weight << np.arange(form.bits)).sum(axis=-1)
    if form.mode == "mxfp4":
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        numbers = np.where(values >= 8, -1.0, 1.0) * table[values % 8]
        powers = np.array(weight.scales).astype(np.int64) - 127
        scales = np.exp2(powers.astype(np.float64))
        numbers_scaled: Floats = numbers * np.repeat(scales, form.group_size, axis=1)
        return numbers_scaled
    assert weight.biases is not None
    scales = np.repeat(floats(weight.scales), form.group_size, axis=1)
    biases = np.repeat(floats(weight.biases), form.group_size, axis=1)
    weights: Floats = values * scales + biases
    return weights


def random_rows(
    product: Product,
    rows: int,
    seed: int = 1,
) -> mx.array:
    """Rows of x with a few large elements, as activations have them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, product.width), dtype=np.float32)
    x[:, :: max(1, product.width // 3)] *= 20
    return mx.array(x).astype(product.dtype)


def check_product(product: Product, make: Make = QuantizedMatmul) -> float:
    """Compares every number of rows with float64; the largest relative error."""
    multiply, weight = make(), packed_weight(product)
    dense = dense_weight(weight)
    worst = 0.0
    for rows in product.rows:
        x = random_rows(product, rows)
        out = multiply(x, weight)
        assert out.dtype == product.dtype
        expected = floats(x) @ dense.T
        for row in range(rows):
            one_row = error(out[row : row + 1], expected[row : row + 1])
            worst = max(worst, one_row)
    allowed = TOLERANCE[product.dtype]
    assert worst <= allowed, f"{product.name}: error {worst:.2e} > {allowed}"
    return worst


def check_rows_alone(product: Product, make: Make = QuantizedMatmul) -> None:
    """A row's bits are the same alone, among 32 rows, and in any place of fewer."""
    multiply, weight = make(), packed_weight(product)
    x = random_rows(product, 32)
    whole = floats(multiply(x, weight))
    for row in (0, 1, 7, 8, 31):
        alone = floats(multiply(x[row : row + 1], weight))
        assert np.array_equal(alone[0], whole[row]), (
            f"{product.name}: row {row} of 32 differs from the row alone"
        )
    for start, end in ((3, 5), (2, 9), (9, 26)):
        part = floats(multiply(x[start:end], weight))
        assert np.array_equal(part, whole[start:end]), (
            f"{product.name}: rows {start} to {end} differ from those of 32"
        )
