"""A model is divided by its own definition, and refused where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx import nn

from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import MemoryBudgetError, UnsupportedModelError
from rvllm_local.models.describe import describe
from rvllm_local.models.families import build_model
from rvllm_local.models.head_counts import kv_heads
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.sharding import divide_outline, parameter_bytes
from rvllm_local.options import EngineOptions, RankHosts
from tests.support.tiny import tiny_config
from tests.support.zoo import zoo_config

APART = RankHosts((("10.0.0.1", 5000), ("10.0.0.2", 5000)), "")


def divided(config: dict[str, Any], ranks: int) -> nn.Module:
    module = build_model(config)
    divide_outline(module, config, ranks)
    return module


def test_a_rank_has_its_rows_of_each_matrix() -> None:
    config = tiny_config("llama")
    module = divided(config, 2)
    layer = module.layers[0]
    assert layer.self_attn.q_proj.weight.shape == (32, 64)
    assert layer.self_attn.o_proj.weight.shape == (64, 32)
    assert layer.mlp.down_proj.weight.shape == (64, 48)
    assert layer.self_attn.n_kv_heads == 1


@pytest.mark.parametrize(
    ("family", "ranks", "words"),
    [
        ("qwen2", 2, "4 heads and 1 of keys and values.*would fit: 1$"),
        ("llama", 3, "4 heads and 2 of keys and values.*would fit: 1, 2$"),
        ("gemma2", 2, "gemma2 .*does not say how"),
    ],
)
def test_what_cannot_be_divided_says_what_would_fit(
    family: str, ranks: int, words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        divided(tiny_config(family), ranks)


def test_widths_that_do_not_divide_are_refused() -> None:
    config = {**tiny_config("llama"), "intermediate_size": 97}
    with pytest.raises(UnsupportedModelError, match=r"llama .* 2 ranks"):
        divided(config, 2)


def test_latent_attention_divides_queries_alone() -> None:
    config = zoo_config("deepseek_v3")
    assert kv_heads({**config, "num_key_value_heads": 1}) is None
    assert divided(config, 2).layers[0].self_attn.num_heads == 2


def test_a_model_that_is_too_large_for_one_rank_fits_two(tmp_path: Path) -> None:
    """Nothing is loaded: the plan knows the shapes of a rank's part."""
    config = {
        **tiny_config("llama"),
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = ModelFiles("folder", tmp_path, "large")
    small = {"kv_memory": 2**26, "context_length": 512, "max_rows": 1}
    whole = plan_model(describe(files, 10**9), EngineOptions(**small), strict=False)
    reserve = whole.device - int(0.7 * whole.total)
    assert reserve > 0
    alone = EngineOptions(**small, system_reserve=reserve)
    with pytest.raises(MemoryBudgetError):
        plan_model(describe(files, 10**9), alone)
    shared = EngineOptions(**small, system_reserve=reserve, ranks=2, hosts=APART)
    part = plan_model(describe(files, 10**9), shared)
    assert part.weights <= 0.55 * whole.weights
    assert part.bytes_per_token == whole.bytes_per_token // 2


def test_recurrent_states_are_divided_with_their_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(zoo_config("qwen3_5")))
    files = ModelFiles("folder", tmp_path, "recurrent")
    whole = plan_model(describe(files, 10**6), EngineOptions(), strict=False)
    part = plan_model(describe(files, 10**6), EngineOptions(ranks=2), strict=False)
    assert part.states == whole.states // 2
    assert part.bytes_per_token == whole.bytes_per_token // 2


def test_bytes_are_counted_without_computing_them() -> None:
    config = tiny_config("llama")
    whole = parameter_bytes(build_model(config))
    layers = 3 * 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert parameter_bytes(divided(config, 2)) == whole - layers // 2
