"""Heads for several tokens, held against their definition in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import describe_head, head_config, load_head
from rvllm_local.models.sharding import parameter_bytes
from tests.support.heads import save_with_head
from tests.support.tiny import save_tiny
from tests.support.zoo import zoo_config

WITH_HEADS = ("glm4_moe", "deepseek_v3", "glm4_moe_lite")
Array = npt.NDArray[np.float64]
TOKENS = [5, 80, 33, 7, 9, 200, 11]


class Definition:
    """A head of GLM 4's, from the stored weights alone, over a whole text."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: value.astype(np.float64)
            for name, value in load_file(folder / "model.safetensors").items()
        }
        self.prefix = f"model.layers.{self.config['num_hidden_layers']}."

    def logits(self, tokens: list[int], states: Array) -> Array:
        embedded = self.weights["model.embed_tokens.weight"][tokens]
        joined = np.concatenate(
            [self.norm("enorm", embedded), self.norm("hnorm", states)], axis=-1
        )
        hidden = self.linear("eh_proj", joined)
        hidden = hidden + self.attention(self.norm("input_layernorm", hidden))
        hidden = hidden + self.experts(self.norm("post_attention_layernorm", hidden))
        ended = self.norm("shared_head.norm", hidden)
        return ended @ self.weights["lm_head.weight"].T

    def of(self, name: str) -> Array:
        return self.weights[f"{self.prefix}{name}.weight"]

    def linear(self, name: str, values: Array) -> Array:
        return values @ self.of(name).T

    def norm(self, name: str, values: Array) -> Array:
        square = (values**2).mean(axis=-1, keepdims=True)
        return values / np.sqrt(square + self.config["rms_norm_eps"]) * self.of(name)

    def attention(self, values: Array) -> Array:
        width = self.config["head_dim"]

        def heads(name: str) -> Array:
            rows = self.linear(f"self_attn.{name}_proj", values)
            return rows.reshape(len(rows), -1, width)

        queries = self.rotated(self.norm("self_attn.q_norm", heads("q")))
        keys = self.rotated(self.norm("self_attn.k_norm", heads("k")))
        shared = queries.shape[1] // keys.shape[1]
        keys = keys.repeat(shared, axis=1)
        scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(width)
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        weights = softmax(scores)
        context = np.einsum("hqk,khd->qhd", weights, heads("v").repeat(shared, axis=1))
        return self.linear("self_attn.o_proj", context.reshape(len(values), -1))

    def rotated(self, heads: Array) -> Array:
        width = int(self.config["head_dim"] * self.config["partial_rotary_factor"])
        half = width // 2
        speeds = self.config["rope_theta"] ** (-np.arange(half) / half)
        angles = (np.arange(len(heads))[:, None] * speeds)[:, None]
        first, second = heads[..., :half], heads[..., half:width]
        turned = [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
            heads[..., width:],
        ]
        return np.concatenate(turned, axis=-1)

    def experts(self, values: Array) -> Array:
        chances = 1 / (1 + np.exp(-self.linear("mlp.gate", values)))
        bias = self.weights[f"{self.prefix}mlp.gate.e_score_correction_bias"]
        count = self.config["num_experts_per_tok"]
        result = self.gated("mlp.shared_experts", values)
        for row, of_row in enumerate(chances):
            chosen = np.argsort(-(of_row + bias))[:count]
            for expert in chosen:
                share = of_row[expert] / of_row[chosen].sum()
                part = self.gated(f"mlp.experts.{expert}", values[row])
                result[row] += share * part
        return result

    def gated(self, name: str, values: Array) -> Array:
        gate = self.linear(f"{name}.gate_proj", values)
        up = self.linear(f"{name}.up_proj", values)
        return self.linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * up)


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def test_a_head_computes_what_its_definition_says(tmp_path: Path) -> None:
    folder = save_with_head("glm4_moe", tmp_path)
    files = locate(str(folder))
    head = load_head(files, load_model(files)).module
    states = np.random.default_rng(5).standard_normal((len(TOKENS), 64))
    head.model.embed_tokens.give(mx.array(states.astype(np.float32)))
    computed = np.array(head(mx.array([TOKENS])))[0]
    expected = Definition(folder).logits(TOKENS, states)
    assert np.abs(computed - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("arch", WITH_HEADS)
def test_a_model_loads_without_its_head(arch: str, tmp_path: Path) -> None:
    """Definitions leave it out, one of them at its family's first depth alone."""
    folder = save_with_head(arch, tmp_path)
    module = load_model(locate(str(folder))).module
    assert len(module.layers) == zoo_config(arch)["num_hidden_layers"]


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
