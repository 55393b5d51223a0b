"""Every CUDA text compiles for an NVIDIA GPU; none has to be there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from rvllm_local.metal_kernels.proof.variants import BF16, F16, F32, I8
from tests.emulator.nvrtc import find_compiler, whole_text
from tests.kernels.recorded import Recorder

COMPILER = find_compiler()
pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="nvidia-cuda-nvrtc and nvidia-cuda-runtime are missing"
)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder("cuda")


def errors_of(recorder: Recorder) -> dict[str, str]:
    """What the compiler says against each text, by the kernel's name."""
    assert COMPILER is not None and recorder.dispatches
    texts = [whole_text(dispatch) for dispatch in recorder.dispatches.values()]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(COMPILER.errors, texts))
    errors = {}
    for name, error in zip(recorder.dispatches, said, strict=True):
        if error is not None:
            errors[name] = error
    return errors


def test_attention_of_every_variant(recorder: Recorder) -> None:
    recorder.attention()
    assert errors_of(recorder) == {}


def test_attention_over_latents(recorder: Recorder) -> None:
    recorder.latents()
    assert errors_of(recorder) == {}


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(F16, F16), (BF16, I8), (F32, F32)], ids=str
)
def test_reading_writing_and_moving_blocks(
    recorder: Recorder, dtype: mx.Dtype, kv_dtype: mx.Dtype
) -> None:
    recorder.blocks(dtype, kv_dtype)
    assert errors_of(recorder) == {}


@pytest.mark.parametrize("rows", [1, 16, 32])
def test_products(recorder: Recorder, rows: int) -> None:
    recorder.products(rows)
    assert errors_of(recorder) == {}


def test_experts_of_few_and_of_many_pairs(recorder: Recorder) -> None:
    recorder.experts()
    assert errors_of(recorder) == {}


def test_routes_of_experts(recorder: Recorder) -> None:
    recorder.routes()
    assert errors_of(recorder) == {}


def test_recurrent_steps(recorder: Recorder) -> None:
    recorder.recurrent_steps()
    assert errors_of(recorder) == {}


def test_what_cuda_does_not_know_is_found() -> None:
    assert COMPILER is not None
    said = COMPILER.errors("__global__ void k(float* x) { x[0] = simd_sum(x[1]); }")
    assert said is not None and "simd_sum" in said
