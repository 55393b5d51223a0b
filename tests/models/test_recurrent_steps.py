"""Layers of gated delta nets in one launch, and when they keep their definition."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.attention.seam import state_cache
from rvllm_local.memory.layout import StateSlot
from rvllm_local.metal_kernels.gated_delta import GatedDelta
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.recurrent_steps import install_gated_delta
from tests.emulator import Emulator
from tests.support.kernel_way import chosen_runner
from tests.support.zoo import zoo_model

LAYERS = 2  # of a tiny model that are recurrent


def step() -> GatedDelta:
    return GatedDelta(launcher=Emulator(seed=2), backend="metal")


def recurrent_layer(model: nn.Module) -> nn.Module:
    return next(m for m in model.modules() if "conv1d" in m)


@pytest.mark.parametrize("arch", ["qwen3_5", "qwen3_next"])
def test_a_compiled_step_takes_a_launch_a_layer(arch: str) -> None:
    runner = chosen_runner(arch)  # in it logits are held against mlx-lm's
    assert runner._compiled is not None
    counts = runner._backend.counter.snapshot()  # type: ignore[attr-defined]
    of_steps = counts["gated_delta_step"] - 1  # the first was the check at load
    assert of_steps > 0
    assert of_steps % LAYERS == 0


def test_joined_projections_are_read_where_they_lie() -> None:
    model, _ = zoo_model("qwen3_5")
    assert fuse_projections(model) > 0
    assert install_gated_delta(model, step()) == LAYERS


def test_other_caches_and_long_calls_go_to_the_definition() -> None:
    from mlx_lm.models.cache import ArraysCache

    model, _ = zoo_model("qwen3_5")
    kernel = step()
    layer = recurrent_layer(model)
    x = mx.random.normal((1, 3, layer.hidden_size))
    expected = layer(x, None, ArraysCache(2))
    mx.eval(expected)
    install_gated_delta(model, kernel, most_tokens=2)
    before = kernel.counter.snapshot()
    assert mx.array_equal(layer(x, None, ArraysCache(2)), expected)
    assert mx.array_equal(layer(x, None, state_cache(StateSlot(0, 2), ())), expected)
    assert kernel.counter.since(before) == {}


def test_a_sequence_begins_with_empty_states() -> None:
    model, _ = zoo_model("qwen3_5")
    layer = recurrent_layer(model)
    x = mx.random.normal((2, 2, layer.hidden_size))
    expected = layer(x, None, state_cache(StateSlot(0, 2), ()))
    mx.eval(expected)
    for _ in range(2):  # a model may be served again
        install_gated_delta(model, step())
    cache = state_cache(StateSlot(0, 2), ())
    assert mx.allclose(layer(x, None, cache), expected, atol=1e-5)
    assert cache[1] is not None


def test_wrong_numbers_leave_a_layer_to_its_definition() -> None:
    def wrong(dispatch: Dispatch) -> Sequence[mx.array]:
        outputs = zip(dispatch.shapes, dispatch.dtypes, strict=True)
        return [mx.full(shape, mx.nan, dtype=dtype) for shape, dtype in outputs]

    model, _ = zoo_model("qwen3_5")
    kernel = GatedDelta(launcher=wrong, backend="metal")
    assert install_gated_delta(model, kernel) == 0
