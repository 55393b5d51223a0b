"""The texts of attention over latents in the emulator, against float64."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import KernelConfig, KernelSet
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.latent import uses_matrix_units
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.proof import block_checks, latent
from rvllm_local.metal_kernels.proof.latent import BF16, F16, F32, I8, LATENTS
from tests.emulator import Emulator

NAMED = {variant.name: variant for variant in LATENTS}
# What has other sizes than these adds no line that they do not run.
LANES = ["r512-f32", "r512-bf16-int8", "r64-bf16-h8-q8", "r32-f32-firsts", "r16-f32",
         "r16-f16", "r24-f32-int8", "r32-as-wide"]  # fmt: skip
MATRIX = ["r512-bf16", "r512-f16-h20-q2", "r256-bf16-h40", "r96-f16-h3"]
UNEVEN = [
    KernelConfig(512, 16, 1, 2, BF16, BF16, 64),
    KernelConfig(32, 4, 2, 2, F32, I8, 16),
    KernelConfig(16, 4, 2, 2, F16, F16, 24),
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=5)


@pytest.fixture
def metal(emulator: Emulator) -> latent.Make:
    return functools.partial(KernelSet, launcher=emulator, backend="metal")


@pytest.fixture
def cuda(emulator: Emulator) -> latent.Make:
    return functools.partial(KernelSet, launcher=emulator, backend="cuda")


@pytest.mark.parametrize("name", LANES)
def test_lanes_match_float64(name: str, metal: latent.Make) -> None:
    latent.check_latent(NAMED[name], metal)


@pytest.mark.parametrize("name", MATRIX)
def test_matrix_units_match_float64(name: str, cuda: latent.Make) -> None:
    assert uses_matrix_units(NAMED[name].config, "cuda")
    latent.check_latent(NAMED[name], cuda)


def test_a_row_does_not_depend_on_the_others(
    metal: latent.Make, cuda: latent.Make
) -> None:
    latent.check_rows_alone(NAMED["r16-f32"], metal)
    latent.check_rows_alone(NAMED["r96-f16-h3"], cuda)


def test_writing_in_the_attention_launch_changes_nothing(
    metal: latent.Make, cuda: latent.Make
) -> None:
    latent.check_fused(NAMED["r32-f32-firsts"], metal)
    latent.check_fused(NAMED["r24-f32-int8"], metal)
    latent.check_fused(NAMED["r64-bf16-h8-q8"], cuda)


def test_rotating_in_the_attention_launch(
    metal: latent.Make, cuda: latent.Make
) -> None:
    latent.check_rotation(NAMED["r16-f32"], metal, pairs=False)
    latent.check_rotation(NAMED["r24-f32-int8"], metal)
    latent.check_rotation(NAMED["r96-f16-h3"], cuda)


@pytest.mark.parametrize("config", UNEVEN, ids=lambda c: f"d{c.head_dim}-{c.kv_dtype}")
def test_uneven_keys_and_values_are_stored(
    config: KernelConfig, metal: latent.Make
) -> None:
    block_checks.check_write_gather(config, metal)
    block_checks.check_copy(config, metal)
    block_checks.check_save_load(config, metal)


def test_a_block_has_the_bytes_of_its_latents() -> None:
    config = KernelConfig(512, 16, 1, 27, BF16, BF16, 64)
    assert mx.zeros(config.arena_shape(2), dtype=BF16).nbytes == (
        2 * 27 * 32 * (512 + 64) * 2
    )


class _WithoutBarrier(Emulator):
    """Removes the barrier of this number from the body."""

    def __init__(self, barrier: str, number: int) -> None:
        super().__init__(seed=3)
        self._barrier, self._number = barrier, number

    def text(self, dispatch: Dispatch) -> str:
        text = super().text(dispatch)
        if dispatch.kernel.kind != "latent_decode":
            return text
        start = text.index("[[kernel]]")
        pieces = text[start:].split(self._barrier)
        assert len(pieces) > self._number + 1
        before = self._barrier.join(pieces[: self._number + 1])
        after = self._barrier.join(pieces[self._number + 1 :])
        return text[:start] + before + after


@pytest.mark.parametrize(
    ("barrier", "number", "backend"),
    [
        ("RV_BARRIER();", 0, "metal"),
        ("RV_BARRIER();", 1, "metal"),
        ("RV_SIMD_BARRIER();", 0, "metal"),
        ("__syncthreads();", 0, "cuda"),
        ("__syncthreads();", 1, "cuda"),
        ("__syncthreads();", 2, "cuda"),
    ],
)
def test_each_barrier_is_needed(barrier: str, number: int, backend: str) -> None:
    emulator = _WithoutBarrier(barrier, number)
    make = functools.partial(KernelSet, launcher=emulator, backend=backend)
    with pytest.raises(AssertionError, match="error"):
        latent.check_latent(NAMED["r64-bf16-h8-q8"], make)


def test_launches_are_counted(emulator: Emulator) -> None:
    variant = NAMED["r32-as-wide"]
    kernels = KernelSet(variant.config, launcher=emulator, backend="metal")
    latent.LatentCase(variant).decode(kernels)
    assert kernels.counter.snapshot() == {"latent_decode": 1, "paged_combine": 1}


def test_what_is_no_latent_is_refused_by_name() -> None:
    several = KernelSet(KernelConfig(32, 4, 2, 1, F16, F16, 16))
    one = KernelSet(KernelConfig(32, 4, 1, 1, F16, F16, 16))
    descriptor = mx.array(layout.pack((1,), (0,), [[1]], 1))
    fence, layer = one.first_fence(), one.layer_index(0)
    scratch = mx.zeros((8,))

    def decode(kernels: KernelSet, rotated: int) -> None:
        arena = mx.zeros(kernels.config.arena_shape(2), dtype=F16)
        queries = mx.zeros((1, 4, 1, 32), dtype=F16)
        turned = mx.zeros((1, 4, 1, rotated), dtype=F16)
        kernels.latent_decode(
            queries, turned, arena, None, descriptor, layer, fence, scratch, scale=1.0
        )

    with pytest.raises(UnsupportedModelError, match=r"one KV head .* not 2"):
        decode(several, 16)
    with pytest.raises(ValueError, match="rotated must be"):
        decode(one, 8)
    with pytest.raises(UnsupportedModelError, match="keys of 32 and values of 16"):
        arena = mx.zeros(several.config.arena_shape(2), dtype=F16)
        queries = mx.zeros((1, 4, 1, 32), dtype=F16)
        several.paged_decode(
            queries, arena, None, descriptor, layer, fence, scratch, scale=1.0
        )
    with pytest.raises(UnsupportedModelError, match="keys of 20 and values of 8"):
        KernelConfig(20, 4, 1, 1, F16, F16, 8)
