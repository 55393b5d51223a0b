"""The emulator itself: it must fail on the mistakes that it exists to catch."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.metal_kernels import KernelSet
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.proof import checks
from rvllm_local.metal_kernels.proof.variants import VARIANTS
from tests.emulator import Emulator, EmulatorError, run_text
from tests.emulator.capture import trace

BARRIER = "threadgroup_barrier(metal::mem_flags::mem_threadgroup);"
SIGNATURE = """[[kernel]] void custom_kernel_probe(
  const device float* a [[buffer(0)]],
  device float* o [[buffer(1)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]]) {
"""
REVERSE = (
    SIGNATURE
    + "threadgroup float s[64]; uint t = thread_position_in_threadgroup.x; s[t] = a[t]; %s o[t] = s[63 - t]; }"
)
A = np.arange(64, dtype=np.float32)


def run(text: str, elements: int = 64, threads: int = 64, seed: int = 0) -> np.ndarray:
    out = run_text(
        text, [A, 4 * elements], (threads, 1, 1), (min(threads, 64), 1, 1), seed
    )
    return np.frombuffer(out[1], np.float32)


def test_a_correct_kernel_passes_in_any_order() -> None:
    for seed in range(4):
        assert np.array_equal(run(REVERSE % BARRIER, seed=seed), A[::-1])


def test_a_removed_barrier_is_caught() -> None:
    assert not np.array_equal(run(REVERSE % ""), A[::-1])


def test_a_divergent_barrier_is_caught() -> None:
    with pytest.raises(EmulatorError, match="divergent"):
        run(REVERSE % ("if (t < 40) {" + BARRIER + "}"))


def test_divergent_simdgroup_operations_are_caught() -> None:
    body = "uint t = thread_position_in_threadgroup.x; float x = a[t]; if (t % 2) x = metal::simd_sum(x); o[t] = x; }"
    with pytest.raises(EmulatorError, match="divergent"):
        run(SIGNATURE + body)


def test_an_out_of_bounds_read_is_caught() -> None:
    with pytest.raises(EmulatorError, match="out of bounds"):
        run(SIGNATURE + "uint t = thread_position_in_grid.x; o[t] = a[t + 1]; }")


def test_a_missing_bounds_check_is_caught() -> None:
    body = "uint t = thread_position_in_grid.x; %s o[t] = a[t %% 64]; }"
    assert run(SIGNATURE + body % "if (t >= 50) return;", elements=50).size == 50
    with pytest.raises(EmulatorError, match=r"out of bounds|red zone"):
        run(SIGNATURE + body % "", elements=50)


def test_too_much_threadgroup_memory_is_caught() -> None:
    with pytest.raises(EmulatorError, match="32 KiB"):
        run(
            SIGNATURE
            + "threadgroup float s[8200]; uint t = thread_position_in_threadgroup.x; s[t] = a[t]; o[t] = s[t]; }"
        )


def test_unwritten_output_is_poison() -> None:
    assert np.isnan(
        run(
            SIGNATURE
            + "if (thread_position_in_grid.x > 0) o[thread_position_in_grid.x] = 1; }"
        )[0]
    )


@pytest.mark.parametrize("barrier", ["RV_SIMD_BARRIER();", "RV_BARRIER();"])
def test_paged_decode_needs_its_barriers(barrier: str) -> None:
    variant = VARIANTS[1]

    class Careless(Emulator):
        def text(self, dispatch: Dispatch) -> str:
            return (
                super()
                .text(dispatch)
                .replace(f"\n  {barrier}", "\n")
                .replace(f"\n{barrier}", "\n")
            )

    with pytest.raises(AssertionError):
        checks.check_decode(
            variant, functools.partial(KernelSet, launcher=Careless(3), backend="metal")
        )


def test_threads_that_trace_at_once_get_their_own_texts() -> None:
    def traced(number: int) -> str:
        kernel = mx.fast.metal_kernel(
            name=f"traced_{number}",
            input_names=["x"],
            output_names=["y"],
            source=f"y[0] = x[0] + {number};",
        )

        def call(x: mx.array) -> object:
            return kernel(
                inputs=[x],
                grid=(1, 1, 1),
                threadgroup=(1, 1, 1),
                output_shapes=[(1,)],
                output_dtypes=[mx.float32],
                verbose=True,
            )

        return trace(call, [mx.zeros((1,))])

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(traced, range(100)))
    assert all(f"x[0] + {number};" in text for number, text in enumerate(texts))
