"""Checks of the choice of experts and of their weighted sum against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.proof.oracle import TOLERANCE, error, floats
from rvllm_local.metal_kernels.proof.quantized import BF16, F16, F32

Make = Callable[[], ExpertRoutes]


@dataclass(frozen=True, slots=True)
class Routes:
    """One variant: `each` of `experts`, whose results are `width` wide."""

    experts: int
    each: int
    of_chosen: bool
    width: int
    dtype: mx.Dtype

    @property
    def name(self) -> str:
        return f"{self.each}-of-{self.experts}-{self.dtype}".replace("mlx.core.", "")


ROUTES = (
    Routes(128, 8, True, 256, BF16),
    Routes(60, 4, False, 72, F16),
    Routes(8, 2, True, 1032, F32),
    Routes(513, 22, False, 8, F32),
)
_ROWS = (1, 5, 32)


def random_logits(case: Routes, rows: int) -> mx.array:
    """Different logits in a row, so that one choice is right."""
    random = np.random.default_rng(rows)
    steps = [random.permutation(case.experts) for _ in range(rows)]
    order = np.stack(steps).astype(np.float32)
    if case.dtype == BF16:  # neighbours differ in eight bits of mantissa
        return mx.array((order - case.experts / 2) / 16).astype(case.dtype)
    return mx.array(order / case.experts * 4 - 2).astype(case.dtype)


def check_choice(case: Routes, make: Make = ExpertRoutes) -> float:
    """Experts in order, and their shares against float64; the largest error."""
    routes = make()
    worst = 0.0
    for rows in _ROWS:
        logits = random_logits(case, rows)
        experts, shares = routes.choose(logits, case.each, of_chosen=case.of_chosen)
        exact = floats(logits)
        order = np.argsort(-exact, axis=-1)[:, : case.each]
        numbers = np.array(experts).reshape(rows, case.each)
        assert np.array_equal(numbers, order), f"{case.name}: other experts"
        powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
        expected = np.take_along_axis(powers, order, axis=-1)
        whole = expected if case.of_chosen else powers
        expected /= whole.sum(axis=-1, keepdims=True)
        worst = max(worst, error(shares.reshape(rows, case.each), expected))
    return _allowed(case, worst)


def check_sums(case: Routes, make: Make = ExpertRoutes) -> float:
    """Weighted sums against float64, and a row's bits alone; the largest error."""
    routes = make()
    worst = 0.0
    for rows in _ROWS:
        random = np.random.default_rng(rows)
        shape = (rows, case.each, case.width)
        parts = mx.array(random.standard_normal(shape, dtype=np.float32))
        shares = mx.array(random.random(shape[:2], dtype=np.float32))
        parts, shares = parts.astype(case.dtype), shares.astype(case.dtype)
        out = routes.weigh(parts, shares.reshape(-1))
        expected = (floats(parts) * floats(shares)[..., None]).sum(axis=1)
        worst = max(worst, error(out, expected))
        alone = routes.weigh(parts[-1:], shares[-1])
        assert mx.array_equal(alone, out[-1:]), f"{case.name}: a row depends on others"
    return _allowed(case, worst)


def _allowed(case: Routes, worst: float) -> float:
    allowed = TOLERANCE[case.dtype]
    assert worst <= allowed, f"{case.name}: error {worst:.2e} > {allowed}"
    return worst
