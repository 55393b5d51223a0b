"""The generated Metal text under Metal's rules on address spaces, read by clang."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from rvllm_local.metal_kernels import (
    AddNorm,
    KernelConfig,
    KernelSet,
    NewTokens,
    QuantizedMatmul,
    Rotation,
)
from rvllm_local.metal_kernels.gated_delta import GatedDelta
from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.proof import (
    checks,
    delta,
    gathered,
    latent,
    quantized,
)
from rvllm_local.metal_kernels.proof.oracle import Case
from rvllm_local.metal_kernels.proof.variants import BF16, F16, F32, I8, VARIANTS
from tests.emulator import capture_text
from tests.emulator.strict import CLANG, address_space_errors

pytestmark = pytest.mark.skipif(CLANG is None, reason="clang is not installed")


class Recorder:
    """A launcher that keeps each dispatch and gives zeros."""

    def __init__(self) -> None:
        self.dispatches: dict[str, Dispatch] = {}

    def __call__(self, dispatch: Dispatch) -> list[mx.array]:
        self.dispatches[dispatch.kernel.name] = dispatch
        outputs = zip(dispatch.shapes, dispatch.dtypes, strict=True)
        return [mx.zeros(shape, dtype=dtype) for shape, dtype in outputs]

    def texts(self) -> list[str]:
        return [capture_text(dispatch) for dispatch in self.dispatches.values()]


def errors_of(recorder: Recorder) -> list[str]:
    """Every error in the recorder's texts."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(address_space_errors, recorder.texts()))
    return [error for errors in results for error in errors]


def test_attention_of_every_variant() -> None:
    recorder = Recorder()
    for variant in VARIANTS:
        kernels = KernelSet(variant.config, launcher=recorder, backend="metal")
        case = Case(variant.config, variant.contexts, variant.query_len)
        sinks = mx.zeros((variant.num_heads,)) if variant.sinks else None
        shape = (len(variant.contexts), variant.kv_heads, variant.query_len)
        new = mx.zeros((*shape, variant.head_dim), dtype=variant.dtype)
        checks.decode(kernels, case, variant, sinks, NewTokens(new, new))
    assert errors_of(recorder) == []


def test_attention_over_latents() -> None:
    recorder = Recorder()
    for variant in latent.LATENTS:
        kernels = KernelSet(variant.config, launcher=recorder, backend="metal")
        case = latent.LatentCase(variant)
        case.decode(kernels, latent.new_tokens(case))
    assert errors_of(recorder) == []


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(F16, F16), (BF16, I8), (F32, F32)], ids=str
)
def test_reading_writing_and_moving_blocks(dtype: mx.Dtype, kv_dtype: mx.Dtype) -> None:
    recorder = Recorder()
    config = KernelConfig(64, 2, 1, 1, dtype, kv_dtype)
    kernels = KernelSet(config, launcher=recorder, backend="metal")
    case = Case(config, (40,))
    fence, layer = kernels.first_fence(), kernels.layer_index(0)
    new = mx.zeros((1, 1, 1, 64), dtype=dtype)
    arena, scales = case.arena, case.scales
    kernels.kv_write(arena, scales, new, new, case.descriptor, layer, fence)
    kernels.kv_gather(arena, scales, case.descriptor, layer, fence, 40)
    kernels.kv_copy(arena, scales, mx.array([[1, 2]], dtype=mx.int32), fence)
    blocks = mx.zeros((8,), dtype=mx.int32)
    saved = kernels.kv_save(arena, scales, blocks, fence, 1)
    kernels.kv_load(arena, scales, blocks, saved, fence)
    kernels.rope_table(case.descriptor, mx.ones(2), 1)
    AddNorm(launcher=recorder, backend="metal")(
        mx.zeros((1, 64), dtype=dtype),
        mx.zeros((1, 64), dtype=dtype),
        mx.zeros((64,), dtype=dtype),
        1e-5,
    )
    assert len(recorder.dispatches) == 7
    assert errors_of(recorder) == []


@pytest.mark.parametrize("matrix_rows", [None, 1], ids=["lanes", "matrices"])
def test_quantized_products(matrix_rows: int | None) -> None:
    recorder = Recorder()
    multiply = QuantizedMatmul(
        launcher=recorder, backend="metal", matrix_rows=matrix_rows
    )
    for product in quantized.PRODUCTS:
        weight = quantized.packed_weight(product)
        multiply(quantized.random_rows(product, 9), weight)
    assert errors_of(recorder) == []


def test_experts_of_few_and_of_many_pairs() -> None:
    recorder = Recorder()
    multiply = GatheredMatmul(launcher=recorder, backend="metal")
    for case in gathered.EXPERTS:
        weights = gathered.expert_weights(case)
        for rows in (1, 9):
            experts = gathered.random_experts(case, rows)
            multiply(quantized.random_rows(case.product, rows), weights, experts)
    assert errors_of(recorder) == []


def test_recurrent_steps() -> None:
    recorder = Recorder()
    step = GatedDelta(launcher=recorder, backend="metal")
    for net in delta.NETS:
        case = delta.Case(net.shape, 1, 1)
        step(net.shape, case.weights, case.inputs, case.conv, case.state)
    assert errors_of(recorder) == []


def test_a_table_of_four_angles_is_device_memory() -> None:
    recorder = Recorder()
    config = KernelConfig(64, 2, 1, 1, F16, F16)
    kernels = KernelSet(config, launcher=recorder, backend="metal")
    arena = mx.zeros(config.arena_shape(3), dtype=F16)
    case = Case(config, (40,))
    kernels.paged_decode(
        case.queries,
        arena,
        None,
        case.descriptor,
        kernels.layer_index(0),
        kernels.first_fence(),
        mx.zeros((8,)),
        scale=1.0,
        rotation=Rotation(mx.zeros((1, 4))),
    )
    assert errors_of(recorder) == []
    (text,) = recorder.texts()
    wrong = text.replace("const device float* rope", "const constant float* rope")
    assert wrong != text
    assert address_space_errors(wrong)
