"""The experts' products in the emulator, against float64."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest

from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul, expert_tuning
from rvllm_local.metal_kernels.proof import gathered
from rvllm_local.metal_kernels.proof.gathered import EXPERTS, Experts
from rvllm_local.metal_kernels.quantized_matmul import WeightFormat
from tests.emulator import Emulator
from tests.support.barriers import WithoutBarrier


def name_of(case: Experts) -> str:
    return case.name


MATRIX = EXPERTS[:3]  # in formats that CUDA's matrix units take


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=5)


@pytest.fixture
def metal(emulator: Emulator) -> gathered.Make:
    return functools.partial(GatheredMatmul, launcher=emulator, backend="metal")


@pytest.fixture
def cuda(emulator: Emulator) -> gathered.Make:
    return functools.partial(GatheredMatmul, launcher=emulator, backend="cuda")


@pytest.mark.parametrize("case", EXPERTS, ids=name_of)
def test_lanes_match_float64(case: Experts, metal: gathered.Make) -> None:
    gathered.check_gathered(case, metal)


@pytest.mark.parametrize("case", MATRIX, ids=name_of)
def test_matrix_units_match_float64(case: Experts, cuda: gathered.Make) -> None:
    gathered.check_gathered(case, cuda)


@pytest.mark.parametrize("case", [EXPERTS[0], EXPERTS[3], EXPERTS[4]], ids=name_of)
def test_gated_lanes_match_float64(case: Experts, metal: gathered.Make) -> None:
    gathered.check_gated(case, metal)


@pytest.mark.parametrize("case", MATRIX, ids=name_of)
def test_gated_matrix_units_match_float64(case: Experts, cuda: gathered.Make) -> None:
    gathered.check_gated(case, cuda)


def test_weights_of_two_sizes_do_not_gate_each_other(metal: gathered.Make) -> None:
    multiply = metal()
    first, other = (gathered.expert_weights(EXPERTS[i]) for i in (0, 3))
    assert multiply.can_gate(first, first) and not multiply.can_gate(first, other)
    assert not metal(by_matrices=True).can_gate(first, first)
    with pytest.raises(ValueError, match="no launch gates"):
        multiply.gated(mx.zeros((1, 320)), first, other, mx.zeros(4, dtype=mx.uint32))


@pytest.mark.parametrize(
    ("width", "warps"), [(768, 3), (2048, 4), (1408, 3), (256, 1), (4096, 4)]
)
def test_every_warp_of_an_expert_has_work(width: int, warps: int) -> None:
    tuning = expert_tuning(width, WeightFormat(4, 64))
    assert tuning.warps == warps
    groups, turn = width // 64, 4 * warps
    begins = [simd * -(-groups // turn) * 4 for simd in range(warps)]
    assert all(begin < groups for begin in begins)


@pytest.mark.parametrize("case", [EXPERTS[0], EXPERTS[3], EXPERTS[4]], ids=name_of)
def test_simdgroup_matrices_match_float64(case: Experts, metal: gathered.Make) -> None:
    gathered.check_gathered(case, functools.partial(metal, by_matrices=True))


def test_a_row_of_simdgroup_matrices_does_not_depend_on_the_others(
    metal: gathered.Make,
) -> None:
    make = functools.partial(metal, by_matrices=True)
    gathered.check_pairs_alone(EXPERTS[4], make)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_simdgroup_matrices_need_each_barrier(number: int) -> None:
    emulator = WithoutBarrier("RV_BARRIER();", number)
    make = functools.partial(
        GatheredMatmul, launcher=emulator, backend="metal", by_matrices=True
    )
    with pytest.raises(Exception, match=r"error|out of bounds"):
        gathered.check_gathered(EXPERTS[4], make)


def test_a_row_does_not_depend_on_the_others(
    metal: gathered.Make, cuda: gathered.Make
) -> None:
    gathered.check_pairs_alone(EXPERTS[4], metal)
    gathered.check_pairs_alone(EXPERTS[1], cuda)


@pytest.mark.parametrize("check", [gathered.check_gathered, gathered.check_gated])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_barrier_is_needed(number: int, check: gathered.Check) -> None:
    barriers = ("RV_BARRIER();", "__syncthreads();", "__syncthreads();")
    emulator = WithoutBarrier(barriers[number], max(0, number - 1))
    make = functools.partial(GatheredMatmul, launcher=emulator, backend="cuda")
    with pytest.raises(Exception, match=r"error|out of bounds|not alone|divergent"):
        check(EXPERTS[1], make)


def test_launches_are_counted(emulator: Emulator) -> None:
    multiply = GatheredMatmul(launcher=emulator, backend="metal")
    gathered.check_gathered(EXPERTS[4], lambda: multiply)
    assert multiply.counter.snapshot() == {"gathered_matmul": 2}


@pytest.mark.parametrize(
    ("rows", "experts", "why"),
    [
        (mx.zeros((2, 64)), mx.zeros(4, dtype=mx.uint32), r"x must be \[rows, 128\]"),
        (mx.zeros((2, 128)), mx.zeros(4), "experts must be uint32"),
        (mx.zeros((3, 128)), mx.zeros(4, dtype=mx.uint32), "3 rows cannot have 4"),
        (mx.zeros((1, 128)), mx.zeros(513, dtype=mx.uint32), "at most 512"),
    ],
)
def test_what_does_not_fit_is_named(
    rows: mx.array, experts: mx.array, why: str
) -> None:
    weights = gathered.expert_weights(EXPERTS[4])
    with pytest.raises(ValueError, match=why):
        GatheredMatmul(backend="metal")(rows, weights, experts)
