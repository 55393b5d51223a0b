"""Each rank of a pipeline has whole layers, by the model's own definition, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.engine.startup.pipeline_stages import common_blocks, plan_stages
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.models.describe import ModelDescription, describe
from rvllm_local.models.families import build_model
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.stages import join_stages, take_stage
from rvllm_local.options import EngineOptions
from tests.support.tiny import tiny_config
from tests.support.zoo import zoo_config, zoo_model


def stage(config: dict[str, Any], ranks: int, rank: int) -> nn.Module:
    module = build_model(config)
    take_stage(module, config, ranks, rank)
    return module


def described(config: dict[str, Any], folder: Path) -> ModelDescription:
    (folder / "config.json").write_text(json.dumps(config))
    return describe(ModelFiles("folder", folder, "model"), 10**6)


def layers_of(module: nn.Module) -> set[int]:
    """Numbers of the layers that have weights here."""
    names = [name for name, _ in tree_flatten(module.parameters())]
    return {int(name.split(".")[2]) for name in names if ".layers." in name}


def test_the_last_rank_has_the_first_layers() -> None:
    config = {**tiny_config("qwen2"), "num_hidden_layers": 5}
    assert layers_of(stage(config, 2, 0)) == {2, 3, 4}
    assert layers_of(stage(config, 2, 1)) == {0, 1}


def test_stages_one_after_the_other_are_the_whole_model() -> None:
    whole, config = zoo_model("qwen2")
    tokens = mx.array([[3, 4, 5]])
    expected = whole(tokens)
    weights = dict(tree_flatten(whole.parameters()))
    hidden = None
    for rank in (1, 0):
        module = stage(config, 2, rank)
        module.load_weights(
            [(name, weights[name]) for name, _ in tree_flatten(module.parameters())]
        )
        inner = module.model
        inner.norm, norm = nn.Identity(), inner.norm
        hidden = inner(tokens, input_embeddings=hidden)
    logits = module.lm_head(norm(hidden))
    assert mx.allclose(logits, expected, atol=1e-5)


def test_a_stage_joins_the_others_where_the_definition_keeps_its_place() -> None:
    module = stage(zoo_config("qwen3_5"), 2, 1)
    text = module.language_model.model
    assert (text.pipeline_rank, text.pipeline_size) == (0, 1)
    join_stages(module, 2, 1)
    assert (text.pipeline_rank, text.pipeline_size) == (1, 2)


@pytest.mark.parametrize(
    ("config", "ranks", "words"),
    [
        (tiny_config("llama"), 2, "llama cannot be a pipeline.*does not say how"),
        (tiny_config("qwen2"), 9, "qwen2 cannot be a pipeline of 9 ranks: split"),
        (zoo_config("qwen3_5"), 4, "other kinds of layers.*would fit: 1, 2$"),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused_by_name(
    config: dict[str, Any], ranks: int, words: str, tmp_path: Path
) -> None:
    options = EngineOptions(ranks=ranks, pipeline=True)
    with pytest.raises(UnsupportedModelError, match=words):
        plan_model(described(config, tmp_path), options)


def test_a_rank_plans_its_own_layers(tmp_path: Path) -> None:
    config = {**tiny_config("qwen2"), "num_hidden_layers": 5}
    options = EngineOptions(ranks=2, pipeline=True, kv_memory=2**20)
    whole = plan_model(described(config, tmp_path), EngineOptions(), strict=False)
    parts = []
    for rank in (0, 1, None):
        model = described(config, tmp_path)
        parts.append(plan_model(model, options, strict=False, rank=rank))
    assert 5 * parts[0].bytes_per_token == 3 * whole.bytes_per_token
    assert 5 * parts[1].bytes_per_token == 2 * whole.bytes_per_token
    assert parts[1].weights < parts[0].weights == parts[2].weights < whole.weights


def test_all_ranks_have_as_many_blocks(tmp_path: Path) -> None:
    """The rank with the most layers says how many fit."""
    config = {**tiny_config("qwen2"), "num_hidden_layers": 5}
    options = EngineOptions(ranks=2, pipeline=True, kv_memory=2**20)
    stages = plan_stages(described(config, tmp_path), options)
    (blocks,) = common_blocks(stages, options, context=2048)
    (shape,) = stages[0].layout.groups
    assert shape.num_layers == 3
    assert blocks * shape.block_bytes <= 2**20 < (blocks + 1) * shape.block_bytes


def test_ranks_have_their_groups_in_one_order(tmp_path: Path) -> None:
    """A rank may begin with a windowed layer, and another one with a full one."""
    config = zoo_config("ministral3")
    config["layer_types"] = ["sliding_attention", "full_attention"] * 3
    config["num_hidden_layers"] = 6
    config["sliding_window"] = 64
    options = EngineOptions(ranks=2, pipeline=True)
    first, second = (
        one.layout for one in plan_stages(described(config, tmp_path), options)
    )
    assert [shape.window for shape in first.groups] == [
        shape.window for shape in second.groups
    ]
    assert windows(first) == [None, 64, None]
    assert windows(second) == [64, None, 64]


def windows(layout: KVLayout) -> list[int | None]:
    """The window of each layer."""
    found = []
    for slot in layout.slots:
        assert isinstance(slot, LayerSlot)
        found.append(layout.groups[slot.group].window)
    return found
