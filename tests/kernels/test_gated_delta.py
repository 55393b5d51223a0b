"""The recurrent step of gated delta nets in the emulator, against float64."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.gated_delta import DeltaShape, GatedDelta
from rvllm_local.metal_kernels.proof import delta
from rvllm_local.metal_kernels.proof.delta import NETS, Case, Net
from tests.emulator import Emulator
from tests.support.barriers import WithoutBarrier

NAMED = {net.name: net for net in NETS}


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=9)


@pytest.fixture
def metal(emulator: Emulator) -> delta.Make:
    return functools.partial(GatedDelta, launcher=emulator, backend="metal")


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_the_step_matches_float64(net: Net, metal: delta.Make) -> None:
    delta.check_delta(net, metal)


def test_cuda_takes_the_same_body(emulator: Emulator) -> None:
    make = functools.partial(GatedDelta, launcher=emulator, backend="cuda")
    delta.check_delta(NAMED["by-key-head-f32"], make)


def test_a_row_does_not_depend_on_the_others(metal: delta.Make) -> None:
    delta.check_rows_alone(NAMED["by-key-head-bf16"], metal)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_barrier_is_needed(number: int) -> None:
    emulator = WithoutBarrier("RV_BARRIER();", number)
    make = functools.partial(
        GatedDelta, launcher=emulator, backend="metal", simdgroups=8
    )
    with pytest.raises(AssertionError, match="error"):
        delta.check_delta(NAMED["16-f32"], make)


def test_launches_are_counted(emulator: Emulator) -> None:
    step = GatedDelta(launcher=emulator, backend="metal")
    delta.check_delta(NAMED["by-key-head-bf16"], lambda: step)
    assert step.counter.snapshot() == {"gated_delta_step": 1}


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (DeltaShape(2, 4, 24, 32, 4, mx.float32, 1e-6), "keys of 24"),
        (DeltaShape(2, 3, 32, 32, 4, mx.float32, 1e-6), "3 heads over 2"),
        (DeltaShape(2, 4, 32, 32, 4, mx.int8, 1e-6), "activations in"),
        (DeltaShape(2, 4, 256, 512, 4, mx.float32, 1e-6), "values of 512"),
    ],
)
def test_shapes_without_a_kernel_are_named(shape: DeltaShape, why: str) -> None:
    case = Case(NAMED["32-f32"].shape, 1, 1)
    with pytest.raises(UnsupportedModelError, match=why):
        GatedDelta()(shape, case.weights, case.inputs, case.conv, case.state)


def test_states_that_do_not_fit_are_named() -> None:
    net = NAMED["32-f32"]
    case = Case(net.shape, 2, 1)
    step = GatedDelta()
    with pytest.raises(ValueError, match="the convolution's state must be"):
        step(net.shape, case.weights, case.inputs, case.conv[:1], case.state)
    with pytest.raises(ValueError, match="the state must be float32"):
        step(net.shape, case.weights, case.inputs, case.conv, case.state[:1])
