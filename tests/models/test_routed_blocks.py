"""Blocks of experts route by the kernels as their definitions do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.models.routed_blocks import install_routed_blocks
from tests.emulator import Emulator

WIDTH = 64
SIZES = {
    "hidden_size": WIDTH,
    "moe_intermediate_size": 32,
    "intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 12,
    "num_local_experts": 12,
    "num_experts_per_tok": 3,
    "mlp_bias": False,
}
BLOCKS = (
    ("mixtral", "MixtralSparseMoeBlock", {}),
    ("olmoe", "OlmoeSparseMoeBlock", {"norm_topk_prob": False}),
    ("qwen2_moe", "Qwen2MoeSparseMoeBlock", {}),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock", {"norm_topk_prob": True}),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock", {"norm_topk_prob": False}),
    ("qwen3_next", "Qwen3NextSparseMoeBlock", {"norm_topk_prob": True}),
)


class Model(nn.Module):  # type: ignore[misc]
    """Two blocks of one definition, each after the other."""

    def __init__(self, file: str, name: str, settings: dict[str, Any]) -> None:
        super().__init__()
        module = importlib.import_module(f"mlx_lm.models.{file}")
        args = SimpleNamespace(**SIZES, **settings)
        self.blocks = [getattr(module, name)(args) for _ in range(2)]

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.blocks:
            x = x + block(x)
        return x


def made(file: str = "qwen3_moe", **settings: Any) -> Model:
    mx.random.seed(6)
    (name,) = {name for of, name, _ in BLOCKS if of == file}
    if not settings:
        settings = {"norm_topk_prob": True}
    model = Model(file, name, settings)
    mx.eval(model.parameters())
    return model


def rows(count: int) -> mx.array:
    return mx.random.normal((count, 1, WIDTH), key=mx.random.key(count))


def kernels() -> ExpertRoutes:
    return ExpertRoutes(launcher=Emulator(seed=2), backend="metal")


@pytest.mark.parametrize(("file", "name", "settings"), BLOCKS)
def test_a_block_gives_what_its_definition_gives(
    file: str, name: str, settings: dict[str, Any]
) -> None:
    mx.random.seed(6)
    model, routes = Model(file, name, settings), kernels()
    expected = model(rows(5))
    mx.eval(expected)
    assert install_routed_blocks(model, routes, mx.float32) == 2
    before = routes.counter.snapshot()
    assert mx.allclose(model(rows(5)), expected, atol=1e-5)
    launches = {"choose_experts": 2, "weigh_parts": 2}
    assert routes.counter.since(before) == launches


def test_many_rows_go_by_the_definition() -> None:
    model, routes = made(), kernels()
    expected = model(rows(33))
    mx.eval(expected)
    install_routed_blocks(model, routes, mx.float32)
    before = routes.counter.snapshot()
    assert mx.array_equal(model(rows(33)), expected)
    assert routes.counter.since(before) == {}


def test_a_model_is_served_again() -> None:
    model = made()
    expected = model(rows(2))
    mx.eval(expected)
    for _ in range(2):
        assert install_routed_blocks(model, kernels(), mx.float32) == 2
    definition = type(model.blocks[0]).__call__.definition
    assert not hasattr(definition, "definition")
    assert mx.allclose(model(rows(2)), expected, atol=1e-5)


def test_wrong_numbers_leave_the_block_to_its_definition() -> None:
    def wrong(dispatch: Dispatch) -> Sequence[mx.array]:
        outputs = zip(dispatch.shapes, dispatch.dtypes, strict=True)
        return [mx.zeros(shape, dtype=dtype) for shape, dtype in outputs]

    model = made()
    expected = model(rows(2))
    routes = ExpertRoutes(launcher=wrong, backend="metal")
    assert install_routed_blocks(model, routes, mx.float32) == 0
    assert mx.array_equal(model(rows(2)), expected)


def test_an_expert_that_no_launch_finds_is_left_to_the_definition() -> None:
    model = made(norm_topk_prob=True)
    for block in model.blocks:
        block.num_experts = 4  # fewer than a launch takes
        block.gate = nn.Linear(WIDTH, 4, bias=False)
    assert install_routed_blocks(model, kernels(), mx.float32) == 0
