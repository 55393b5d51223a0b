"""The kernels' Metal text, executed by the emulator, against a float64 oracle."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import AddNorm, KernelConfig, KernelSet, Rotation
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.arguments import checked_table
from rvllm_local.metal_kernels.config import FENCE_SIZE
from rvllm_local.metal_kernels.proof import block_checks, checks
from rvllm_local.metal_kernels.proof.variants import (
    BF16,
    F16,
    F32,
    I8,
    VARIANTS,
    Variant,
)
from rvllm_local.metal_kernels.splits import SPLIT_RULES, SplitRule
from tests.emulator import Emulator

BODY_LIMIT = 10_000


NAMED = {variant.name: variant for variant in VARIANTS}
MATRIX = ("d64-bf16-g4-q3", "d64-f16-sinks-window", "d80-f16-mha", "d128-bf16-g16", "d96-f16-int8-g2", "d128-bf16-int8-g4",
          "d256-bf16-softcap-window")  # some of those that CUDA computes with another body  # fmt: skip


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=11)


@pytest.fixture
def metal(emulator: Emulator) -> checks.Make:
    return functools.partial(KernelSet, launcher=emulator, backend="metal")


@pytest.fixture
def cuda(emulator: Emulator) -> checks.Make:
    return functools.partial(KernelSet, launcher=emulator, backend="cuda")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_paged_decode_matches_the_oracle(variant: Variant, metal: checks.Make) -> None:
    checks.check_decode(variant, metal)


@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix_units_body_matches_the_oracle(name: str, cuda: checks.Make) -> None:
    checks.check_decode(NAMED[name], cuda)


@pytest.mark.parametrize("name", ["d64-bf16-g4-q3", "d64-f16-sinks"])
def test_a_row_does_not_depend_on_its_neighbours(name: str, metal: checks.Make) -> None:
    checks.check_row_independence(NAMED[name], metal)


def test_a_row_does_not_depend_on_its_neighbours_with_matrix_units(
    cuda: checks.Make,
) -> None:
    checks.check_row_independence(NAMED["d64-f16-sinks"], cuda)


@pytest.mark.parametrize("name", ["d64-bf16-g4-q3", "d64-f32-int8-q5-window"])
def test_writing_in_the_attention_launch_changes_nothing(
    name: str, metal: checks.Make
) -> None:
    checks.check_fused(NAMED[name], metal)


def test_writing_in_the_matrix_units_launch_changes_nothing(cuda: checks.Make) -> None:
    checks.check_fused(NAMED["d128-bf16-int8-g4"], cuda)


def test_rotating_in_the_attention_launch(
    metal: checks.Make, cuda: checks.Make
) -> None:
    checks.check_rotation(NAMED["d16-f16-tiny"], metal, pairs=True)
    checks.check_rotation(NAMED["d80-f16-mha"], metal)
    checks.check_rotation(NAMED["d128-bf16-int8-g4"], cuda)


def test_rotating_in_a_launch_before_attention_changes_nothing(
    metal: checks.Make, cuda: checks.Make
) -> None:
    """So a step that checks drafts gives the bits of steps that check none."""
    checks.check_rotated_apart(NAMED["d16-f16-tiny"], metal, pairs=True)
    checks.check_rotated_apart(NAMED["d128-bf16-int8-g4"], cuda)


def test_the_table_of_rotations(metal: checks.Make) -> None:
    checks.check_rope_table(CONFIGS[3], metal)


@pytest.mark.parametrize(
    ("width", "dtype"), [(2048, BF16), (72, F16), (576, F32), (5120, BF16)], ids=str
)
def test_adding_and_norming(width: int, dtype: mx.Dtype, emulator: Emulator) -> None:
    checks.check_add_norm(
        width, dtype, functools.partial(AddNorm, launcher=emulator, backend="metal")
    )


def test_what_cannot_be_added_and_normed_is_named() -> None:
    x = mx.zeros((2, 1, 16))
    for stream, added, weight, why in (
        (x, x[..., :8], mx.ones(16), r"adds \(2, 1, 8\) to a stream of \(2, 1, 16\)"),
        (x[..., :12], x[..., :12], mx.ones(12), r"a stream of \(2, 1, 12\)"),
        (
            x,
            x.astype(mx.bfloat16),
            mx.ones(16),
            "adds mlx.core.bfloat16 to a stream of mlx.core.float32",
        ),
    ):
        with pytest.raises(UnsupportedModelError, match=why):
            AddNorm()(stream, added, weight, 1e-5)


CONFIGS = [
    KernelConfig(64, 4, 2, 2, BF16, BF16),
    KernelConfig(80, 4, 2, 2, F16, F16),
    KernelConfig(96, 2, 2, 2, F32, I8),
    KernelConfig(16, 2, 1, 2, F32, F32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"d{c.head_dim}-{c.kv_dtype}")
def test_write_then_gather(config: KernelConfig, metal: checks.Make) -> None:
    block_checks.check_write_gather(config, metal)


@pytest.mark.parametrize(
    "config", CONFIGS[1:3], ids=lambda c: f"d{c.head_dim}-{c.kv_dtype}"
)
def test_copy_blocks(config: KernelConfig, metal: checks.Make) -> None:
    block_checks.check_copy(config, metal)


class _LastFence(KernelSet):
    """Kernels whose chain of fences begins with the largest one."""

    @staticmethod
    def first_fence() -> mx.array:
        return mx.full((FENCE_SIZE,), 2**31 - 1, dtype=mx.int32)


def test_every_kernel_works_when_the_fence_wraps(emulator: Emulator) -> None:
    make = functools.partial(_LastFence, launcher=emulator, backend="metal")
    for config in CONFIGS[1:3]:
        block_checks.check_write_gather(config, make)
        block_checks.check_copy(config, make)
        block_checks.check_save_load(config, make)
    checks.check_decode(NAMED["d64-f16-sinks"], make)
    checks.check_fused(NAMED["d80-f16-mha"], make)


def test_the_fence_after_the_largest_is_zero(emulator: Emulator) -> None:
    kernels = _LastFence(CONFIGS[1], launcher=emulator, backend="metal")
    arena = mx.zeros(CONFIGS[1].arena_shape(4), dtype=F16)
    pairs = mx.array([[1, 2]], dtype=mx.int32)
    fence = kernels.kv_copy(arena, None, pairs, kernels.first_fence())
    assert fence.tolist() == [0] * 8
    assert kernels.kv_copy(arena, None, pairs, fence).tolist() == [1] * 8


def test_a_small_table_of_rotations_is_padded_to_device_memory() -> None:
    rotation = Rotation(mx.arange(6, dtype=mx.float32).reshape(3, 2))
    table = checked_table(rotation, 3, 1, 16)
    assert table.size == FENCE_SIZE
    assert table[:6].tolist() == [0, 1, 2, 3, 4, 5]
    large = Rotation(mx.zeros((2, 16)))
    assert checked_table(large, 2, 1, 16) is large.table


def test_thread_order_does_not_change_a_bit() -> None:
    variant = next(v for v in VARIANTS if v.name == "d64-bf16-g4-q3")
    with ThreadPoolExecutor(2) as pool:
        makes = [
            functools.partial(KernelSet, launcher=Emulator(seed), backend="metal")
            for seed in range(4)
        ]
        errors = list(pool.map(lambda make: checks.check_decode(variant, make), makes))
    assert len(set(errors)) == 1


def test_bodies_are_small_and_dispatches_are_counted(
    emulator: Emulator, metal: checks.Make
) -> None:
    checks.check_decode(NAMED["d64-long"], metal)
    assert {d.kernel.kind for d in emulator.dispatches} >= {
        "paged_decode",
        "paged_combine",
    }
    assert all(
        len(d.kernel.body) < BODY_LIMIT
        for d in emulator.dispatches
        if d.kernel.backend == "metal"
    )
    kernels = KernelSet(CONFIGS[0], launcher=emulator)
    fence = kernels.first_fence()
    arena = mx.zeros(CONFIGS[0].arena_shape(3), dtype=BF16)
    mx.eval(arena)
    kernels.kv_copy(arena, None, mx.array([[1, 2]], dtype=mx.int32), fence)
    assert kernels.counter.snapshot() == {"kv_copy": 1}


def test_every_thread_count_is_whole_groups(
    emulator: Emulator, metal: checks.Make
) -> None:
    checks.check_decode(VARIANTS[-1], metal)
    for dispatch in emulator.dispatches:
        assert all(
            grid % group == 0
            for grid, group in zip(dispatch.grid, dispatch.threadgroup, strict=True)
        )


@pytest.mark.parametrize(
    "max_blocks", [1, 4, 8, 16, 17, 63, 64, 65, 128, 129, 256, 257, 512, 513, 4096]
)
@pytest.mark.parametrize("rule", SPLIT_RULES.values(), ids=SPLIT_RULES)
def test_the_grid_covers_every_row(rule: SplitRule, max_blocks: int) -> None:
    assert rule.most(max_blocks) == max(
        -(-n // rule.blocks(n)) for n in range(1, max_blocks + 1)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head_dim": 72}, "72"),
        ({"num_heads": 34}, "17"),
        ({"kv_dtype": mx.uint8}, "uint8"),
        ({"dtype": I8}, "int8"),
    ],
)
def test_unsupported_shapes_are_refused_by_name(
    change: dict[str, object], named: str
) -> None:
    shape: dict[str, object] = {
        "head_dim": 64, "num_heads": 4, "kv_heads": 2, "num_layers": 1, "dtype": F16, "kv_dtype": F16
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=named):
        KernelConfig(**{**shape, **change})  # type: ignore[arg-type]


def test_wrong_shapes_of_a_decode_call_are_refused_by_name() -> None:
    kernels = KernelSet(CONFIGS[0])
    arena = mx.zeros(CONFIGS[0].arena_shape(2), dtype=BF16)
    one_block = mx.array(layout.pack((1,), (0,), [[1]], 1))
    many_blocks = mx.array(layout.pack((1,), (0,), [[1]], 1, max_blocks=512))

    def decode(
        queries: tuple[int, ...],
        packed: mx.array = one_block,
        rotation: Rotation | None = None,
    ) -> None:
        kernels.paged_decode(
            mx.zeros(queries, dtype=BF16),
            arena,
            None,
            packed,
            kernels.layer_index(0),
            kernels.first_fence(),
            mx.zeros((8,)),
            scale=1.0,
            rotation=rotation,
        )

    with pytest.raises(ValueError, match="scratch must be float32 with"):
        decode((1, 4, 1, 64), many_blocks)
    with pytest.raises(ValueError, match="a rotation needs one query token"):
        decode((1, 4, 1, 64), rotation=Rotation(mx.zeros((1, 66))))
    with pytest.raises(ValueError, match="queries must be"):
        decode((1, 4, 1, 32))
    with pytest.raises(ValueError, match="1 to 8 query tokens"):
        decode((1, 4, 9, 64))


def test_wrong_shapes_of_other_calls_are_refused_by_name() -> None:
    kernels = KernelSet(CONFIGS[0])
    arena = mx.zeros(CONFIGS[0].arena_shape(2), dtype=BF16)
    fence = kernels.first_fence()
    pairs = mx.zeros((1, 2), dtype=mx.int32)
    with pytest.raises(ValueError, match="fence must be"):
        kernels.kv_copy(arena, None, pairs, mx.zeros((1,), dtype=mx.int32))
    with pytest.raises(ValueError, match="does not describe"):
        no_descriptor = mx.zeros((8,), dtype=mx.int32)
        layer = kernels.layer_index(0)
        kernels.kv_gather(arena, None, no_descriptor, layer, fence, 4)
    with pytest.raises(ValueError, match="scales"):
        int8_arena = mx.zeros(CONFIGS[2].arena_shape(2), dtype=I8)
        KernelSet(CONFIGS[2]).kv_copy(int8_arena, None, pairs, fence)


@pytest.mark.parametrize(
    ("contexts", "firsts", "tables"),
    [
        ((40,), (0,), [[1]]),
        ((3,), (5,), [[1]]),
        ((1, 2), (0,), [[1]]),
        ((1,), (0,), [[1]]),
    ],
)
def test_bad_descriptors_are_refused(
    contexts: tuple[int, ...], firsts: tuple[int, ...], tables: list[list[int]]
) -> None:
    with pytest.raises(ValueError):
        layout.pack(contexts, firsts, tables, 2)


def test_the_quick_descriptor_is_the_checked_one() -> None:
    contexts, firsts, tables = [5, 40, 97], [0, 0, 64], [[3], [1, 2], [7, 9]]
    checked = layout.pack(contexts, firsts, tables, 1, rows=4, max_blocks=8)
    assert np.array_equal(layout.pack_decode(contexts, firsts, tables, 4, 8), checked)
