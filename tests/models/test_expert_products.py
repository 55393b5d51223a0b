"""Routed experts multiply by the kernel or by MLX, as was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.models.expert_products import ExpertsChoice, install_expert_products
from tests.emulator import Emulator

WIDTH, INNER, EXPERTS, EACH = 64, 32, 6, 2


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: str) -> None:
        super().__init__()
        from mlx_lm.models import switch_layers

        self.experts = getattr(switch_layers, kind)(WIDTH, INNER, EXPERTS, bias=True)

    def __call__(self, rows: int) -> mx.array:
        return self.experts(*inputs(rows))


def inputs(rows: int) -> tuple[mx.array, mx.array]:
    x = mx.random.normal((1, rows, WIDTH), key=mx.random.key(rows))
    first = mx.arange(rows)[None, :, None] % EXPERTS
    indices = mx.concatenate([first, (first + 2) % EXPERTS], axis=-1)
    return x, indices.astype(mx.uint32)


def block(kind: str = "SwitchGLU") -> Block:
    mx.random.seed(4)
    module = Block(kind)
    nn.quantize(module, group_size=32, bits=4)
    for part in module.experts.children().values():
        if "bias" in part:
            part["bias"] = mx.random.normal(part["bias"].shape)
    mx.eval(module.parameters())
    return module


def kernel() -> GatheredMatmul:
    return GatheredMatmul(launcher=Emulator(seed=2), backend="metal")


def kernel_wins_to(limit: int) -> Callable[[Any, Any], float]:
    """Times as if the kernel were quicker than MLX up to so many rows."""

    def timer(calls: Any, inputs: Any) -> float:
        is_kernel = calls[0].__name__ == "multiplied"
        return 1.0 if is_kernel == (len(inputs[0][0]) <= limit) else 2.0

    return timer


def install(
    module: Block, multiply: GatheredMatmul, limit: int = 8, **settings: Any
) -> list[ExpertsChoice]:
    given = {"each": EACH, "always": False, "timer": kernel_wins_to(limit)}
    return install_expert_products(module, multiply, **(given | settings))


@pytest.mark.parametrize("kind", ["SwitchGLU", "SwitchMLP"])
def test_few_rows_go_to_the_kernel_and_many_to_mlx(kind: str) -> None:
    module, multiply = block(kind), kernel()
    few, many = module(3), module(9)
    mx.eval(few, many)
    (choice,) = install(module, multiply, most_rows=8)
    assert (choice.most_rows, choice.refused) == (8, None)
    before = multiply.counter.snapshot()
    assert mx.allclose(module(3), few, atol=1e-4)
    parts = {"SwitchGLU": 3, "SwitchMLP": 2}[kind]
    assert multiply.counter.since(before) == {"gathered_matmul": parts}
    assert mx.array_equal(module(9), many)
    assert multiply.counter.since(before) == {"gathered_matmul": parts}


def test_gates_take_one_launch_where_nothing_is_added() -> None:
    module, multiply = block(), kernel()
    for part in module.experts.children().values():
        if "bias" in part:
            part.pop("bias")
    expected = module(3)
    mx.eval(expected)
    install(module, multiply, most_rows=8)
    before = multiply.counter.snapshot()
    assert mx.allclose(module(3), expected, atol=1e-4)
    launches = {"gathered_gates": 1, "gathered_matmul": 1}
    assert multiply.counter.since(before) == launches


def test_more_rows_go_to_the_kernel_that_was_quicker_for_them() -> None:
    def timer(calls: Any, inputs: Any) -> float:
        if calls[0].__name__ == "multiplied":
            return float(len(inputs[0][0]))
        return 2.0 if calls[0].__name__ == "multiplied_by_matrices" else 9.0

    module, lanes = block("SwitchMLP"), kernel()
    matrices = GatheredMatmul(
        launcher=Emulator(seed=2), backend="metal", by_matrices=True
    )
    expected = module(3)
    mx.eval(expected)
    (choice,) = install(module, lanes, matrices=matrices, tried=(1, 3), timer=timer)
    assert (choice.most_rows, choice.matrix_rows) == (3, 3)
    before = [multiply.counter.snapshot() for multiply in (lanes, matrices)]
    module(1)
    assert mx.allclose(module(3), expected, atol=1e-4)
    assert lanes.counter.since(before[0]) == {"gathered_matmul": 2}
    assert matrices.counter.since(before[1]) == {"gathered_matmul": 2}


def test_experts_that_mlx_multiplies_quicker_stay() -> None:
    module = block()
    (choice,) = install(module, kernel(), limit=0)
    assert choice.most_rows == 0
    assert not hasattr(type(module.experts).__call__, "definition")


def test_always_takes_the_kernel_without_timing() -> None:
    module, multiply = block(), kernel()
    (choice,) = install(module, multiply, limit=0, always=True, most_rows=1)
    assert choice == ExpertsChoice({}, 32)


def test_a_model_is_served_again() -> None:
    module = block()
    expected = module(3)
    for _ in range(2):
        install(module, kernel(), most_rows=1)
    definition = type(module.experts).__call__.definition
    assert not hasattr(definition, "definition")
    assert mx.allclose(module(3), expected, atol=1e-4)


def test_wrong_numbers_leave_the_experts_to_mlx() -> None:
    def wrong(dispatch: Dispatch) -> Sequence[mx.array]:
        return [mx.full(dispatch.shapes[0], mx.nan, dtype=dispatch.dtypes[0])]

    multiply = GatheredMatmul(launcher=wrong, backend="metal")
    (choice,) = install(block(), multiply)
    assert choice.refused == "the kernel's experts differ from MLX's by nan"


def test_experts_that_are_not_quantized_stay() -> None:
    assert install(Block("SwitchGLU"), kernel()) == []
