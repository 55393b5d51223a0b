"""Quantized layers multiply by the kernel or by MLX, as was measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.metal_kernels import QuantizedMatmul
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.quantized_matmul import PackedWeight
from rvllm_local.models.choice_notes import ChoiceNotes
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.product_checks import Product, mlx_product
from rvllm_local.models.products import (
    ROW_TILES,
    QuantizedProducts,
    install_products,
)
from tests.emulator import Emulator

WIDTH, OUTS = 64, 9


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, OUTS, bias=True)
        self.up_proj = nn.Linear(WIDTH, OUTS, bias=True)
        self.embed = nn.Embedding(10, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return self.gate_proj(x) * self.up_proj(x)


def block(bits: int = 4) -> Block:
    mx.random.seed(4)
    module = Block()
    nn.quantize(module, group_size=32, bits=bits)
    mx.eval(module.parameters())
    return module


class Timer:
    """The kernel is quicker than MLX up to `limit` rows."""

    def __init__(self, kernel: QuantizedMatmul, limit: int) -> None:
        self._kernel, self._limit = kernel, limit
        self.calls = 0

    def __call__(
        self, product: Product, x: mx.array, weights: Sequence[PackedWeight]
    ) -> float:
        self.calls += 1
        is_kernel = product is self._kernel
        kernel_wins = len(x) <= self._limit
        return 1.0 if is_kernel == kernel_wins else 2.0


def kernel() -> QuantizedMatmul:
    return QuantizedMatmul(launcher=Emulator(seed=2), backend="metal")


def test_few_rows_go_to_the_kernel_and_many_to_mlx() -> None:
    module, multiply = block(), kernel()
    few = mx.random.normal((1, 2, WIDTH))
    many = mx.random.normal((1, 5, WIDTH))
    expected = [module(few), module(many), module.embed.as_linear(few)]
    mx.eval(expected)
    products = QuantizedProducts([multiply], always=False, timer=Timer(multiply, 2))
    assert install_products(module, products, mx.float32) == 3
    launches = multiply.counter.snapshot()["quantized_matmul"]
    assert mx.allclose(module(few), expected[0], atol=1e-4)
    assert multiply.counter.snapshot()["quantized_matmul"] == launches + 2
    assert mx.allclose(module.embed.as_linear(few), expected[2], atol=1e-4)
    launches += 3
    assert mx.array_equal(module(many), expected[1])
    assert multiply.counter.snapshot()["quantized_matmul"] == launches


def test_mlx_gets_rows_below_each_other_as_they_were_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, multiply = block(), kernel()
    products = QuantizedProducts([multiply], always=False, timer=Timer(multiply, 0))
    install_products(module, products, mx.float32)
    shapes = []

    def recorded(x: mx.array, weight: PackedWeight) -> mx.array:
        shapes.append(x.shape)
        return mlx_product(x, weight)

    monkeypatch.setattr("rvllm_local.models.products.mlx_product", recorded)
    product = module.embed.as_linear(mx.zeros((8, 1, WIDTH)))
    assert product.shape == (8, 1, 10)
    assert shapes == [(8, WIDTH)]


def test_the_quickest_of_several_kernels_serves() -> None:
    slow, quick = kernel(), kernel()

    def timer(product: Product, x: mx.array, weights: Sequence[PackedWeight]) -> float:
        return 1.0 if product is quick else 2.0

    products = QuantizedProducts([slow, quick], always=False, timer=timer)
    module = block()
    install_products(module, products, mx.float32)
    launches = quick.counter.snapshot()["quantized_matmul"]
    module(mx.zeros((1, WIDTH)))
    assert quick.counter.snapshot()["quantized_matmul"] == launches + 2


def test_a_later_start_times_nothing_again(tmp_path: Path) -> None:
    notes = ChoiceNotes("a machine", tmp_path)
    served = []
    multiply = kernel()
    for most_rows, times_expected in ((1, 4), (1, 0), (2, 4)):
        timer = Timer(multiply, 1)
        products = QuantizedProducts(
            [multiply], always=False, most_rows=most_rows, timer=timer, notes=notes
        )
        install_products(block(), products, mx.float32)
        served.append([choice.served for choice in products.choices.values()])
        assert timer.calls == times_expected
    assert served[0] == served[1] == served[2] == [{1: 0}, {1: 0}]


def test_notes_of_another_machine_are_not_believed(tmp_path: Path) -> None:
    times = {1: (1e-3, 2e-3)}
    ChoiceNotes("a machine", tmp_path).write(["a shape"], times)
    assert ChoiceNotes("a machine", tmp_path).read(["a shape"]) == times
    assert ChoiceNotes("another machine", tmp_path).read(["a shape"]) == {}
    assert ChoiceNotes("a machine", tmp_path).read(["another shape"]) == {}


def test_each_shape_is_timed_once() -> None:
    module, multiply = block(), kernel()
    timer = Timer(multiply, 32)
    install_products(
        module, QuantizedProducts([multiply], always=False, timer=timer), mx.float32
    )
    shapes = 2
    assert timer.calls == 2 * shapes * len(ROW_TILES)


def test_no_more_rows_are_tried_than_can_come() -> None:
    multiply = kernel()
    timer = Timer(multiply, 32)
    products = QuantizedProducts([multiply], always=False, most_rows=3, timer=timer)
    install_products(block(), products, mx.float32)
    assert {tuple(choice.served) for choice in products.choices.values()} == {(1, 2, 4)}


def test_more_rows_go_through_the_kernel_in_pieces() -> None:
    module, multiply = block(), kernel()
    x = mx.random.normal((40, 1, WIDTH))
    expected = module(x)
    mx.eval(expected)

    def timer(product: Product, x: mx.array, weights: Sequence[PackedWeight]) -> float:
        if isinstance(product, functools.partial):
            return 1.0
        return 3.0 if product is multiply else 2.0

    products = QuantizedProducts([multiply], always=False, most_rows=40, timer=timer)
    install_products(module, products, mx.float32)
    assert {tuple(choice.served) for choice in products.choices.values()} == {(64,)}
    launches = multiply.counter.snapshot()["quantized_matmul"]
    assert mx.allclose(module(x), expected, atol=1e-4)
    assert multiply.counter.snapshot()["quantized_matmul"] == launches + 4


def test_joined_projections_go_to_the_kernel() -> None:
    module, multiply = block(), kernel()
    x = mx.random.normal((1, 3, WIDTH))
    expected = module(x)
    mx.eval(expected)
    assert fuse_projections(module) == 1
    products = QuantizedProducts([multiply], always=True)
    install_products(module, products, mx.float32)
    launches = multiply.counter.snapshot()["quantized_matmul"]
    assert mx.allclose(module(x), expected, atol=1e-4)
    assert multiply.counter.snapshot()["quantized_matmul"] == launches + 1


def test_always_takes_the_kernel_without_timing() -> None:
    multiply = kernel()
    timer = Timer(multiply, 0)
    products = QuantizedProducts([multiply], always=True, timer=timer)
    install_products(block(), products, mx.float32)
    assert timer.calls == 0
    choices = products.choices.values()
    assert all(set(choice.served) == set(ROW_TILES) for choice in choices)


def test_wrong_numbers_leave_the_layer_to_mlx() -> None:
    def wrong(dispatch: Dispatch) -> Sequence[mx.array]:
        return [mx.full(dispatch.shapes[0], mx.nan, dtype=dispatch.dtypes[0])]

    module = block()
    multiply = QuantizedMatmul(launcher=wrong, backend="metal")
    products = QuantizedProducts([multiply], always=True)
    assert install_products(module, products, mx.float32) == 0
    assert type(module.gate_proj) is nn.QuantizedLinear
    refused = {choice.refused for choice in products.choices.values()}
    assert refused == {"the kernel's product differs from MLX's by nan of its largest"}


def test_a_kernel_that_does_not_compile_leaves_the_layer_to_mlx() -> None:
    def broken(dispatch: Dispatch) -> Sequence[mx.array]:
        raise RuntimeError("no compiler here")

    multiply = QuantizedMatmul(launcher=broken, backend="metal")
    products = QuantizedProducts([multiply], always=False)
    assert install_products(block(), products, mx.float32) == 0


@pytest.mark.parametrize("dtype", [mx.float16], ids=str)
def test_activations_in_another_type_than_the_scales_go_to_mlx(
    dtype: mx.Dtype,
) -> None:
    module, multiply = block(), kernel()
    install_products(module, QuantizedProducts([multiply], always=True), mx.float32)
    launches = multiply.counter.snapshot()["quantized_matmul"]
    module.up_proj(mx.zeros((1, WIDTH), dtype=dtype))
    assert multiply.counter.snapshot()["quantized_matmul"] == launches
