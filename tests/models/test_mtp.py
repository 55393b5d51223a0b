"""Heads for several tokens, held against their definition in float64."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.head_forms import head_config
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import describe_head, load_head
from rvllm_local.models.sharding import parameter_bytes
from tests.support.head_definitions import definition
from tests.support.heads import WITH_HEADS, save_with_head
from tests.support.tiny import save_tiny
from tests.support.zoo import zoo_config

TOKENS = [5, 80, 33, 7, 9, 200, 11]


@pytest.mark.parametrize("arch", WITH_HEADS)
def test_a_head_computes_what_its_definition_says(arch: str, tmp_path: Path) -> None:
    folder = save_with_head(arch, tmp_path)
    files = locate(str(folder))
    head = load_head(files, load_model(files)).module
    states = np.random.default_rng(5).standard_normal((len(TOKENS), 64))
    head.model.embed_tokens.give(mx.array(states.astype(np.float32)))
    computed = np.array(head(mx.array([TOKENS])))[0]
    expected = definition(arch, folder).logits(TOKENS, states)
    assert np.abs(computed - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("arch", WITH_HEADS)
def test_a_model_loads_without_its_head(arch: str, tmp_path: Path) -> None:
    """Definitions leave it out, one of them at its family's first depth alone."""
    folder = save_with_head(arch, tmp_path)
    module = load_model(locate(str(folder))).module
    config = zoo_config(arch)
    config = config.get("text_config", config)
    assert len(module.layers) == config["num_hidden_layers"]


def test_a_head_takes_what_was_planned(tmp_path: Path) -> None:
    """Its embedding and its output are the model's, and counted there."""
    files = locate(str(save_with_head("glm4_moe", tmp_path)))
    loaded = load_model(files)
    head = load_head(files, loaded)
    assert head.module.lm_head.weight is loaded.module.lm_head.weight
    own = parameter_bytes(head.module) - head.module.lm_head.weight.nbytes
    assert describe_head(loaded.config).weights_bytes == head.weights_bytes == own
    names = dict(tree_flatten(head.module.parameters()))
    assert "model.embed_tokens.eh_proj.weight" in names
    assert head_config(loaded.config)["num_hidden_layers"] == 1


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    files = locate(str(save_tiny("llama", tmp_path / "llama")))
    with pytest.raises(UnsupportedModelError, match="this is a llama model"):
        load_head(files, load_model(files))
    folder = save_with_head("glm4_moe", tmp_path / "glm")
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if not k.startswith("model.layers.4.")}
    save_file(kept, path, {"format": "mlx"})
    files = locate(str(folder))
    with pytest.raises(UnsupportedModelError, match="has left them out"):
        load_head(files, load_model(files))
