"""Heads for several tokens from their definitions, in float64, of the stored weights.

Written from what the families' own releases compute (`DeepSeek-V3`, GLM 4.5, Qwen3-Next
and Qwen3.5 as vLLM and transformers run them), and from no code of the product.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[np.float64]


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


class Glm:
    """A layer behind the model's last one, over a whole text."""

    embedding = "model.embed_tokens.weight"
    joint = ("enorm", "hnorm", "eh_proj")
    layer = ""
    last_norm = "shared_head.norm"
    added = 0.0  # to the weights of norms

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.config: dict[str, Any] = config.get("text_config", config)
        self.weights = {
            name: value.astype(np.float64)
            for name, value in load_file(folder / "model.safetensors").items()
        }
        self.prefix = self.own_prefix()

    def own_prefix(self) -> str:
        return f"model.layers.{self.config['num_hidden_layers']}."

    def logits(self, tokens: list[int], states: Array) -> Array:
        embedding = self.weights[self.embedding]
        before_embedding, before_state, projection = self.joint
        embedded = self.norm(before_embedding, embedding[tokens])
        joined = np.concatenate([embedded, self.norm(before_state, states)], axis=-1)
        hidden = self.linear(projection, joined)
        layer = self.layer
        hidden = hidden + self.attention(self.norm(f"{layer}input_layernorm", hidden))
        behind = self.norm(f"{layer}post_attention_layernorm", hidden)
        hidden = hidden + self.feed_forward(behind)
        ended = self.norm(self.last_norm, hidden)
        return ended @ self.weights.get("lm_head.weight", embedding).T

    def of(self, name: str) -> Array:
        return self.weights[f"{self.prefix}{name}.weight"]

    def linear(self, name: str, values: Array) -> Array:
        return values @ self.of(name).T

    def norm(self, name: str, values: Array) -> Array:
        square = (values**2).mean(axis=-1, keepdims=True)
        scaled = values / np.sqrt(square + self.config["rms_norm_eps"])
        return np.asarray(scaled * (self.of(name) + self.added))

    def heads(self, name: str, values: Array, width: int) -> Array:
        rows = self.linear(f"{self.layer}self_attn.{name}", values)
        return rows.reshape(len(rows), -1, width)

    def attention(self, values: Array) -> Array:
        width = self.config["head_dim"]
        queries = self.norm("self_attn.q_norm", self.heads("q_proj", values, width))
        keys = self.norm("self_attn.k_norm", self.heads("k_proj", values, width))
        turned = self.halves_turned(queries), self.halves_turned(keys)
        context = attended(*turned, self.heads("v_proj", values, width))
        return self.linear("self_attn.o_proj", context.reshape(len(values), -1))

    def halves_turned(self, heads: Array) -> Array:
        """Dimension i with dimension i + half, of the leading part of a head."""
        width = int(self.config["head_dim"] * self.rotary_factor())
        half = width // 2
        angles = self.angles(len(heads), half)
        first, second = heads[..., :half], heads[..., half:width]
        turned = [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
            heads[..., width:],
        ]
        return np.concatenate(turned, axis=-1)

    def rotary_factor(self) -> float:
        return float(self.config["partial_rotary_factor"])

    def angles(self, length: int, half: int) -> Array:
        rotation = self.config.get("rope_parameters", self.config)
        speeds = rotation["rope_theta"] ** (-np.arange(half) / half)
        return np.asarray((np.arange(length)[:, None] * speeds)[:, None])

    def feed_forward(self, values: Array) -> Array:
        chances = sigmoid(self.linear("mlp.gate", values))
        bias = self.weights[f"{self.prefix}mlp.gate.e_score_correction_bias"]
        result = self.gated("mlp.shared_experts", values)
        scale = self.config["routed_scaling_factor"]
        return result + scale * self.routed(values, chances, chances + bias)

    def routed(self, values: Array, chances: Array, ranks: Array) -> Array:
        count = self.config["num_experts_per_tok"]
        result = np.zeros_like(values)
        for row, of_row in enumerate(chances):
            chosen = np.argsort(-ranks[row])[:count]
            for expert in chosen:
                share = of_row[expert] / of_row[chosen].sum()
                name = f"{self.layer}mlp.experts.{expert}"
                result[row] += share * self.gated(name, values[row])
        return result

    def gated(self, name: str, values: Array) -> Array:
        gate = self.linear(f"{name}.gate_proj", values)
        up = self.linear(f"{name}.up_proj", values)
        return self.linear(f"{name}.down_proj", gate * sigmoid(gate) * up)


def attended(
    queries: Array, keys: Array, values: Array, scale: float | None = None
) -> Array:
    """Causal attention of `[tokens, heads, dim]` each."""
    shared = queries.shape[1] // keys.shape[1]
    keys = keys.repeat(shared, axis=1)
    scale = scale or queries.shape[-1] ** -0.5
    scores = np.einsum("qhd,khd->hqk", queries, keys) * scale
    scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    shown = values.repeat(shared, axis=1)
    return np.asarray(np.einsum("hqk,khd->qhd", softmax(scores), shown))


class Latent(Glm):
    """DeepSeek's: keys and values of all heads come from one latent of a token."""

    def attention(self, values: Array) -> Array:
        plain = self.config["qk_nope_head_dim"]
        turning = self.config["qk_rope_head_dim"]
        rank = self.config["kv_lora_rank"]
        narrow = self.linear("self_attn.q_a_proj", values)
        narrow = self.norm("self_attn.q_a_layernorm", narrow)
        queries = self.heads("q_b_proj", narrow, plain + turning)
        joined = self.linear("self_attn.kv_a_proj_with_mqa", values)
        latents = self.norm("self_attn.kv_a_layernorm", joined[:, :rank])
        both = self.heads("kv_b_proj", latents, plain + self.config["v_head_dim"])
        turned = self.neighbours_turned(joined[:, None, rank:])
        turned = turned.repeat(queries.shape[1], axis=1)
        keys = np.concatenate([both[..., :plain], turned], axis=-1)
        asked = self.neighbours_turned(queries[..., plain:])
        queries = np.concatenate([queries[..., :plain], asked], axis=-1)
        context = attended(queries, keys, both[..., plain:])
        return self.linear("self_attn.o_proj", context.reshape(len(values), -1))

    def neighbours_turned(self, heads: Array) -> Array:
        """Dimension 2i with dimension 2i + 1."""
        angles = self.angles(len(heads), heads.shape[-1] // 2)
        first, second = heads[..., ::2], heads[..., 1::2]
        turned = np.empty_like(heads)
        turned[..., ::2] = first * np.cos(angles) - second * np.sin(angles)
        turned[..., 1::2] = second * np.cos(angles) + first * np.sin(angles)
        return turned


class Qwen(Glm):
    """A head by itself, whose attention has gates and whose norms multiply by 1 + w."""

    joint = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc")
    layer = "layers.0."
    last_norm = "norm"
    added = 1.0

    def own_prefix(self) -> str:
        if self.embedding not in self.weights:
            self.embedding = "model.language_model.embed_tokens.weight"
        return "mtp."

    def attention(self, values: Array) -> Array:
        width = self.config["head_dim"]
        both = self.heads("q_proj", values, 2 * width)
        queries = self.norm("layers.0.self_attn.q_norm", both[..., :width])
        keys = self.heads("k_proj", values, width)
        keys = self.norm("layers.0.self_attn.k_norm", keys)
        turned = self.halves_turned(queries), self.halves_turned(keys)
        context = attended(*turned, self.heads("v_proj", values, width))
        context = context * sigmoid(both[..., width:])
        rows = context.reshape(len(values), -1)
        return self.linear("layers.0.self_attn.o_proj", rows)

    def rotary_factor(self) -> float:
        rotation = self.config.get("rope_parameters", self.config)
        return float(rotation["partial_rotary_factor"])

    def feed_forward(self, values: Array) -> Array:
        if not self.config["num_experts"]:
            return self.gated("layers.0.mlp", values)
        chances = softmax(self.linear("layers.0.mlp.gate", values))
        shared = self.gated("layers.0.mlp.shared_expert", values)
        gate = sigmoid(self.linear("layers.0.mlp.shared_expert_gate", values))
        return gate * shared + self.routed(values, chances, chances)


def definition(arch: str, folder: Path) -> Glm:
    """The definition of a family's head, with a folder's weights."""
    if arch.startswith("qwen"):
        return Qwen(folder)
    if arch == "glm4_moe":
        return Glm(folder)
    return Latent(folder)
