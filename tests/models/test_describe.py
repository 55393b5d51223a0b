"""What a configuration says of a model: its heads under any of their names."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.models.cpu.stored import keep_stored, packed_bytes
from rvllm_local.models.describe import describe_config, num_heads
from rvllm_local.models.head_counts import stated_heads
from rvllm_local.models.quantized import narrowest_bits
from rvllm_local.models.sharding import parameter_bytes
from tests.support.tiny import tiny_model


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 32, "hidden_size": 2048}, 32),
        ({"n_heads": 48}, 48),
        ({"num_query_heads": [12, 16, 20]}, 20),
        ({"text_config": {"num_attention_heads": 8}}, 8),
        ({"hidden_size": 2048}, None),
    ],
)
def test_query_heads_have_many_names(config: dict[str, Any], heads: int | None) -> None:
    assert stated_heads(config) == heads


def test_heads_that_are_not_stated_are_guessed_for_plans() -> None:
    assert num_heads({"hidden_size": 2048}) == 32
    assert num_heads({"n_heads": 4, "hidden_size": 2048}) == 4


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_weights_take_no_more_than_a_plan_is_told(arch: str, bits: int) -> None:
    module, config = tiny_model(arch)
    module.set_dtype(mx.bfloat16)  # the type of a file's scales
    nn.quantize(module, group_size=32, bits=bits)
    stored = parameter_bytes(module)
    keep_stored(module)
    held = packed_bytes(module)
    described = describe_config(config, arch, stored, bits=bits)
    assert described.packed_bytes is not None
    assert held <= described.packed_bytes
    assert described.packed_bytes <= described.weights_bytes


def test_the_narrowest_layer_of_a_plan_counts() -> None:
    plan: dict[str, Any] = {"group_size": 64, "bits": 4}
    assert narrowest_bits({"quantization": plan}) == 4
    plan["model.layers.0.mlp.up_proj"] = {"group_size": 64, "bits": 2}
    assert narrowest_bits({"quantization": plan}) == 2
    assert narrowest_bits({}) is None
