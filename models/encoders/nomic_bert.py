"""Nomic's BERT: rotary positions, norms behind, a gated feed-forward part, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.models.encoders.activations import activation
from rvllm_local.models.encoders.attention import (
    attend,
    padding_mask,
    rotated,
    split_heads,
)

# Two spellings: that of the maker's own code, and that of transformers.
RENAMED = (
    ("embeddings.word_embeddings", "words"),
    ("embeddings.token_type_embeddings", "kinds"),
    ("embeddings.LayerNorm", "norm"),
    ("emb_ln", "norm"),
    ("encoder.layers.", "layers."),
    ("encoder.layer.", "layers."),
    (".attn.Wqkv", ".joined"),
    (".attn.out_proj", ".mixed"),
    (".self_attn.o_proj", ".mixed"),
    (".self_attn.q_proj", ".query"),
    (".self_attn.k_proj", ".key"),
    (".self_attn.v_proj", ".value"),
    (".norm1", ".mixed_norm"),
    (".norm2", ".norm"),
    (".post_attention_layernorm", ".mixed_norm"),
    (".post_mlp_layernorm", ".norm"),
    (".mlp.fc11", ".up"),
    (".mlp.fc12", ".gate"),
    (".mlp.fc2", ".down"),
    (".mlp.up_proj", ".up"),
    (".mlp.gate_proj", ".gate"),
    (".mlp.down_proj", ".down"),
)
# The maker's own names of settings, and transformers'.
_SETTINGS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
# What the maker's code could be told, and the one value that is known here.
_FIXED = {
    "prenorm": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
}


def normal_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in transformers' words."""
    normal = dict(config)
    for old, new in _SETTINGS.items():
        if old in config:
            normal.setdefault(new, config[old])
    return normal


def unknown_setting(config: Mapping[str, Any]) -> str | None:
    """A setting that asks for what is not built here, with its value."""
    for name, value in _FIXED.items():
        if name in config and config[name] != value:
            return f"{name} {config[name]!r:.60}"
    return None


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and a gated feed-forward part, each with its norm behind it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        inner = config["intermediate_size"]
        eps = config.get("layer_norm_eps", 1e-12)
        rotation = config.get("rope_parameters") or {}
        base = rotation.get("rope_theta") or config.get("rotary_emb_base") or 1000.0
        self._base = float(base)
        self.num_heads = config["num_attention_heads"]
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.mixed = nn.Linear(hidden, hidden, bias=False)
        self.mixed_norm = nn.LayerNorm(hidden, eps=eps)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self._activation = activation(config.get("hidden_act", "silu"))

    def __call__(self, states: mx.array, mask: mx.array) -> mx.array:
        mixed = attend(
            rotated(split_heads(self.query(states), self.num_heads), self._base),
            rotated(split_heads(self.key(states), self.num_heads), self._base),
            split_heads(self.value(states), self.num_heads),
            mask,
        )
        states = self.mixed_norm(states + self.mixed(mixed))
        inner = self._activation(self.gate(states)) * self.up(states)
        normed: mx.array = self.norm(states + self.down(inner))
        return normed


class NomicBert(nn.Module):  # type: ignore[misc]
    """Hidden states `[rows, tokens, hidden]` of token ids `[rows, tokens]`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.kinds = nn.Embedding(config.get("type_vocab_size", 2), hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.get("layer_norm_eps", 1e-12))
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]

    @staticmethod
    def split_joined(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The maker's own files hold query, key and value as one matrix."""
        split = {}
        for name, value in weights.items():
            stem = name.removesuffix("joined.weight")
            if stem == name:
                split[name] = value
                continue
            parts = mx.split(value, 3, axis=0)
            for part, kind in zip(parts, ("query", "key", "value"), strict=True):
                split[f"{stem}{kind}.weight"] = part
        return split

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        states: mx.array = self.norm(self.words(tokens) + self.kinds(kinds))
        mask = padding_mask(lengths, tokens.shape[1])
        for layer in self.layers:
            states = layer(states, mask)
        return states
