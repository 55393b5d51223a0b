"""Checks of the experts' products against float64, wherever they can be launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels.gathered_matmul import ExpertWeights, GatheredMatmul
from rvllm_local.metal_kernels.proof.oracle import TOLERANCE, Floats, error, floats
from rvllm_local.metal_kernels.proof.quantized import (
    BF16,
    F16,
    F32,
    Product,
    dense_weight,
    packed_weight,
    random_rows,
)
from rvllm_local.metal_kernels.quantized_matmul import WeightFormat

Make = Callable[[], GatheredMatmul]


@dataclass(frozen=True, slots=True)
class Experts:
    """One variant. `product.outs` are an expert's; `rows` are tried with `each` pairs."""

    product: Product
    count: int
    rows: tuple[int, ...]
    each: int

    @property
    def name(self) -> str:
        return f"{self.product.name}-{self.count}-experts"


Check = Callable[[Experts, Make], float]

EXPERTS = (
    Experts(Product("4-g64-bf16", WeightFormat(4, 64), 320, 37, BF16), 16, (1, 8), 4),
    Experts(Product("4-g32-f16", WeightFormat(4, 32), 160, 34, F16), 5, (4, 32), 2),
    Experts(Product("8-g64-bf16", WeightFormat(8, 64), 192, 16, BF16), 4, (32,), 3),
    Experts(
        Product("mxfp4-bf16", WeightFormat(4, 32, "mxfp4"), 96, 11, BF16), 6, (9,), 4
    ),
    Experts(Product("3-g64-f32", WeightFormat(3, 64), 128, 9, F32), 3, (5,), 2),
)


def expert_weights(case: Experts, seed: int = 0) -> ExpertWeights:
    """Random weights in the variant's format."""
    product = case.product
    whole = Product(
        product.name,
        product.format,
        product.width,
        product.outs * case.count,
        product.dtype,
    )
    return ExpertWeights(packed_weight(whole, seed), case.count)


def random_experts(case: Experts, rows: int, seed: int = 3) -> mx.array:
    """Different experts for each row, uint32 `[rows * each]`.

    The first expert is asked for by every row, some by one, and the last by none.
    """
    random = np.random.default_rng(seed)
    choices = np.zeros((rows, case.each), dtype=np.uint32)
    for row in range(rows):
        others = 1 + random.permutation(case.count - 2)
        choices[row, 1:] = others[: case.each - 1]
        random.shuffle(choices[row])
    return mx.array(choices.reshape(-1))


def check_gathered(case: Experts, make: Make = GatheredMatmul) -> float:
    """Compares every pair with float64; the largest relative error."""
    multiply = make()
    weights = expert_weights(case)
    dense = dense_weight(weights.weight).reshape(case.count, case.product.outs, -1)
    worst = 0.0
    for rows in case.rows:
        experts = random_experts(case, rows)
        x = random_rows(case.product, rows)
        per_pair = mx.contiguous(mx.repeat(x, case.each, axis=0))
        for given in (x, per_pair):
            out = multiply(given, weights, experts)
            assert out.dtype == case.product.dtype
            worst = max(worst, _worst(out, floats(per_pair), dense, np.array(experts)))
    allowed = TOLERANCE[case.product.dtype]
    assert worst <= allowed, f"{case.name}: error {worst:.2e} > {allowed}"
    return worst


def check_gated(case: Experts, make: Make = GatheredMatmul) -> float:
    """Compares gated products with float64, and a row alone with it among others."""
    multiply = make()
    product = case.product
    weights, gate = expert_weights(case), expert_weights(case, seed=5)
    outs = (case.count, product.outs, -1)
    first = dense_weight(weights.weight).reshape(outs)
    second = dense_weight(gate.weight).reshape(outs)
    worst = 0.0
    for rows in case.rows:
        experts = random_experts(case, rows)
        x = random_rows(product, rows) * 0.25
        out = multiply.gated(x, weights, gate, experts)
        alone = multiply.gated(x[:1], weights, gate, experts[: case.each])
        assert mx.array_equal(alone, out[: case.each]), f"{case.name}: not alone"
        for pair, expert in enumerate(np.array(experts)):
            row = floats(x)[pair // case.each]
            gates = row @ second[expert].T
            expected = gates / (1 + np.exp(-gates)) * (row @ first[expert].T)
            worst = max(worst, error(out[pair], expected))
    allowed = TOLERANCE[product.dtype]
    assert worst <= allowed, f"{case.name}: error {worst:.2e} > {allowed}"
    return worst


def _worst(
    out: mx.array,
    x: Floats,
    dense: Floats,
    experts: np.ndarray,
) -> float:
    worst = 0.0
    for pair, expert in enumerate(experts):
        expected = x[pair : pair + 1] @ dense[expert].T
        worst = max(worst, error(out[pair : pair + 1], expected))
    return worst


def check_pairs_alone(case: Experts, make: Make = GatheredMatmul) -> None:
    """A row's bits are the same alone, among 32 rows, and in any place of fewer."""
    multiply = make()
    weights = expert_weights(case)
    each = case.each
    x = random_rows(case.product, 32)
    experts = random_experts(case, 32)
    whole = floats(multiply(x, weights, experts))
    for start, end in ((0, 1), (31, 32), (3, 5), (2, 11)):
        pairs = experts[start * each : end * each]
        part = floats(multiply(x[start:end], weights, pairs))
        assert np.array_equal(part, whole[start * each : end * each]), (
            f"{case.name}: rows {start} to {end} differ from those of 32"
        )
