"""The choice of experts and their weighted sum in the emulator, against float64."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.proof import routes
from rvllm_local.metal_kernels.proof.routes import ROUTES, Routes
from tests.emulator import Emulator


def name_of(case: Routes) -> str:
    return case.name


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=5)


@pytest.fixture(params=["metal", "cuda"])
def make(request: pytest.FixtureRequest, emulator: Emulator) -> routes.Make:
    return functools.partial(ExpertRoutes, launcher=emulator, backend=request.param)


@pytest.mark.parametrize("case", ROUTES, ids=name_of)
def test_the_largest_logits_are_chosen(case: Routes, make: routes.Make) -> None:
    routes.check_choice(case, make)


@pytest.mark.parametrize("case", ROUTES, ids=name_of)
def test_sums_match_float64(case: Routes, make: routes.Make) -> None:
    routes.check_sums(case, make)


def test_equal_logits_give_different_experts(make: routes.Make) -> None:
    experts, shares = make().choose(mx.zeros((2, 40)), 3, of_chosen=True)
    for row in np.array(experts).reshape(2, 3):
        assert len(set(row.tolist())) == 3 and row.max() < 40
    assert mx.allclose(shares, mx.full((6,), 1 / 3), atol=1e-6)


def test_masked_experts_come_last(make: routes.Make) -> None:
    logits = mx.where(mx.arange(33) == 32, 0.0, -mx.inf)[None]
    experts, shares = make().choose(logits, 2, of_chosen=False)
    assert np.array(experts)[0] == 32 and np.array(experts)[1] < 32
    assert np.array(shares).tolist() == [1.0, 0.0]


def test_what_is_no_number_reaches_the_shares(make: routes.Make) -> None:
    logits = mx.where(mx.arange(64) == 50, mx.nan, 1.0)[None]
    experts, shares = make().choose(logits, 2, of_chosen=True)
    assert np.array(experts)[0] == 50 and np.array(experts).max() < 64
    assert np.isnan(np.array(shares)).all()


def test_launches_are_counted(emulator: Emulator) -> None:
    kernels = ExpertRoutes(launcher=emulator, backend="metal")
    experts, shares = kernels.choose(mx.zeros((1, 8)), 2, of_chosen=True)
    kernels.weigh(mx.zeros((1, 2, 8)), shares)
    assert kernels.counter.snapshot() == {"choose_experts": 1, "weigh_parts": 1}
    assert experts.dtype == mx.uint32


@pytest.mark.parametrize(
    ("count", "each", "why"),
    [(7, 2, "among 7 experts"), (1025, 2, "among 1025"), (64, 33, "33 of 64")],
)
def test_numbers_without_a_kernel_are_named(count: int, each: int, why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        ExpertRoutes(backend="metal").choose(mx.zeros((1, count)), each, of_chosen=True)


def test_other_widths_and_types_are_named() -> None:
    kernels = ExpertRoutes(backend="metal")
    with pytest.raises(UnsupportedModelError, match="no launch weighs"):
        kernels.weigh(mx.zeros((1, 2, 12)), mx.zeros(2))
    with pytest.raises(UnsupportedModelError, match="no launch weighs"):
        kernels.weigh(mx.zeros((1, 2, 16)), mx.zeros(2, dtype=mx.float16))
    with pytest.raises(UnsupportedModelError, match="no launch routes"):
        kernels.choose(mx.zeros((1, 16), dtype=mx.int32), 2, of_chosen=True)
