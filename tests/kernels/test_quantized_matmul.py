"""The quantized products' texts in the emulator, against float64."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.proof import quantized
from rvllm_local.metal_kernels.proof.quantized import PRODUCTS, Product
from rvllm_local.metal_kernels.quantized_matmul import (
    PackedWeight,
    QuantizedMatmul,
    WeightFormat,
)
from tests.emulator import Emulator, EmulatorError, run_text
from tests.support.barriers import WithoutBarrier

NAMED = {product.name: product for product in PRODUCTS}
MATRIX = [
    product
    for product in PRODUCTS
    if product.format.mode == "affine"
    and product.format.bits in (4, 8)
    and product.dtype != mx.float32
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(seed=7)


@pytest.fixture
def metal(emulator: Emulator) -> quantized.Make:
    return functools.partial(QuantizedMatmul, launcher=emulator, backend="metal")


@pytest.fixture
def cuda(emulator: Emulator) -> quantized.Make:
    return functools.partial(QuantizedMatmul, launcher=emulator, backend="cuda")


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: p.name)
def test_lanes_match_float64(product: Product, metal: quantized.Make) -> None:
    quantized.check_product(product, metal)


@pytest.mark.parametrize("product", MATRIX, ids=lambda p: p.name)
def test_matrix_units_match_float64(product: Product, cuda: quantized.Make) -> None:
    quantized.check_product(product, cuda)


@pytest.mark.parametrize(
    "name", ["4-g64-bf16", "4-g32-f16", "4-g64-f32", "mxfp4-bf16", "3-g64-bf16"]
)
def test_simdgroup_matrices_match_float64(name: str, metal: quantized.Make) -> None:
    make = functools.partial(metal, matrix_rows=1)
    quantized.check_product(NAMED[name], make)


def test_a_row_of_simdgroup_matrices_does_not_depend_on_the_others(
    metal: quantized.Make,
) -> None:
    make = functools.partial(metal, matrix_rows=1)
    quantized.check_rows_alone(NAMED["4-g64-f32"], make)


def test_a_row_does_not_depend_on_the_others(
    metal: quantized.Make, cuda: quantized.Make
) -> None:
    quantized.check_rows_alone(NAMED["4-g64-f32"], metal)
    quantized.check_rows_alone(NAMED["4-g32-f16"], cuda)


@pytest.mark.parametrize("number", [0, 1])
def test_simdgroup_matrices_need_each_barrier(number: int) -> None:
    emulator = WithoutBarrier("RV_BARRIER();", number)
    make = functools.partial(
        QuantizedMatmul, launcher=emulator, backend="metal", matrix_rows=1
    )
    with pytest.raises(AssertionError, match="error"):
        quantized.check_product(NAMED["4-g64-f32"], make)


@pytest.mark.parametrize("number", [0, 1])
def test_the_warps_sums_need_each_barrier(number: int) -> None:
    emulator = WithoutBarrier("__syncthreads();", number)
    make = functools.partial(QuantizedMatmul, launcher=emulator, backend="cuda")
    with pytest.raises(AssertionError, match="error"):
        quantized.check_product(NAMED["4-g128-bf16"], make)


def test_the_elements_of_a_simdgroup_matrix_cannot_be_read() -> None:
    text = """#include <metal_simdgroup_matrix>
[[kernel]] void custom_kernel_probe(
  device float* o [[buffer(0)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]]) {
  metal::simdgroup_matrix<float, 8, 8> m(1.0f);
  o[thread_position_in_threadgroup.x] = m.held[0];
}
"""
    with pytest.raises(EmulatorError, match="private"):
        run_text(text, [128], (32, 1, 1), (32, 1, 1))


def test_launches_are_counted(emulator: Emulator) -> None:
    multiply = QuantizedMatmul(launcher=emulator, backend="metal")
    product = NAMED["4-g64-f32"]
    weight = quantized.packed_weight(product)
    multiply(quantized.random_rows(product, 1), weight)
    assert multiply.counter.snapshot() == {"quantized_matmul": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": WeightFormat(7, 64)}, "no kernel for weights of 7 bits"),
        ({"format": WeightFormat(4, 16)}, "no kernel for groups of 16"),
        ({"format": WeightFormat(4, 64, "nvfp4")}, "in mode nvfp4"),
        ({"biases": None}, "no kernel for biases"),
        ({"scales": mx.ones((9, 3), dtype=mx.float16)}, "no kernel for scales in"),
    ],
)
def test_what_no_kernel_multiplies_is_named(
    change: dict[str, object], why: str
) -> None:
    given = quantized.packed_weight(NAMED["4-g64-f32"])
    parts = {
        "words": given.words,
        "scales": given.scales,
        "biases": given.biases,
        "format": given.format,
    }
    weight = PackedWeight(**{**parts, **change})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=why):
        QuantizedMatmul(backend="metal")(mx.zeros((1, 192)), weight)


@pytest.mark.parametrize("shape", [(33, 192), (1, 191), (192,), (1, 1, 192)])
def test_rows_that_do_not_fit_are_named(shape: tuple[int, ...]) -> None:
    weight = quantized.packed_weight(NAMED["4-g64-f32"])
    with pytest.raises(ValueError, match=r"x must be \[1 to 32 rows, 192\]"):
        QuantizedMatmul(backend="metal")(mx.zeros(shape), weight)
