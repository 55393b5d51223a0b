"""The generated Metal text under Metal's rules on address spaces, read by clang."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from rvllm_local.metal_kernels import KernelConfig, Rotation
from rvllm_local.metal_kernels.proof.oracle import Case
from rvllm_local.metal_kernels.proof.variants import BF16, F16, F32, I8
from tests.emulator import capture_text
from tests.emulator.strict import CLANG, address_space_errors
from tests.kernels.recorded import Recorder

pytestmark = pytest.mark.skipif(CLANG is None, reason="clang is not installed")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder("metal")


def errors_of(recorder: Recorder) -> list[str]:
    """Every error in the recorder's texts."""
    texts = [capture_text(dispatch) for dispatch in recorder.dispatches.values()]
    assert texts
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(address_space_errors, texts))
    return [error for errors in results for error in errors]


def test_attention_of_every_variant(recorder: Recorder) -> None:
    recorder.attention()
    assert errors_of(recorder) == []


def test_attention_over_latents(recorder: Recorder) -> None:
    recorder.latents()
    assert errors_of(recorder) == []


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(F16, F16), (BF16, I8), (F32, F32)], ids=str
)
def test_reading_writing_and_moving_blocks(
    recorder: Recorder, dtype: mx.Dtype, kv_dtype: mx.Dtype
) -> None:
    recorder.blocks(dtype, kv_dtype)
    assert len(recorder.dispatches) == 7
    assert errors_of(recorder) == []


@pytest.mark.parametrize("matrix_rows", [None, 1], ids=["lanes", "matrices"])
def test_products(recorder: Recorder, matrix_rows: int | None) -> None:
    recorder.products(9, matrix_rows)
    recorder.experts(by_matrices=matrix_rows is not None)
    assert errors_of(recorder) == []


def test_routes_of_experts(recorder: Recorder) -> None:
    recorder.routes()
    assert errors_of(recorder) == []


def test_recurrent_steps(recorder: Recorder) -> None:
    recorder.recurrent_steps()
    assert errors_of(recorder) == []


def test_the_elements_of_a_simdgroup_matrix_cannot_be_read() -> None:
    text = """[[kernel]] void probe(device float* o [[buffer(0)]]) {
  metal::simdgroup_matrix<float, 8, 8> m(1.0f);
  o[0] = m.held;
}
"""
    (error,) = address_space_errors(text)
    assert "private" in error


def test_a_table_of_four_angles_is_device_memory(recorder: Recorder) -> None:
    config = KernelConfig(64, 2, 1, 1, F16, F16)
    kernels = recorder.kernels(config)
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
    (dispatch,) = recorder.dispatches.values()
    text = capture_text(dispatch)
    wrong = text.replace("const device float* rope", "const constant float* rope")
    assert wrong != text
    assert address_space_errors(wrong)
