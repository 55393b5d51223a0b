"""ModernBERT: rotary positions, norms before, windows in most layers, gated GELU."""

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
    window_mask,
)

RENAMED = (
    ("embeddings.tok_embeddings", "words"),
    ("embeddings.norm", "norm"),
    (".attn.Wqkv", ".joined"),
    (".attn.Wo", ".mixed"),
    (".mlp.Wi", ".up"),
    (".mlp.Wo", ".down"),
    ("head.dense", "head"),
    ("head.norm", "head_norm"),
)
_SLIDING = "sliding_attention"


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """Full or sliding attention, layer by layer, in either spelling."""
    kinds = config.get("layer_types")
    if kinds:
        return list(kinds)
    every = config.get("global_attn_every_n_layers", 3)
    kinds = []
    for layer in range(config["num_hidden_layers"]):
        kinds.append(_SLIDING if layer % every else "full_attention")
    return kinds


def base_of(config: Mapping[str, Any], kind: str) -> float:
    """The rotation's base of a kind of layer, in either spelling."""
    rotations = config.get("rope_parameters") or {}
    rotation = rotations.get(kind) or {}
    if "rope_theta" in rotation:
        return float(rotation["rope_theta"])
    if kind == _SLIDING:
        local = config.get("local_rope_theta")
        return 10_000.0 if local is None else float(local)
    return float(config.get("global_rope_theta", 160_000.0))


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and a gated feed-forward part. The first layer has no norm before."""

    def __init__(
        self,
        config: Mapping[str, Any],
        kind: str,
        is_first: bool,
    ) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        inner = config["intermediate_size"]
        eps = config.get("norm_eps", 1e-5)
        norm_bias = config.get("norm_bias", False)
        attention_bias = config.get("attention_bias", False)
        mlp_bias = config.get("mlp_bias", False)
        self.is_sliding = kind == _SLIDING
        self._base = base_of(config, kind)
        self.num_heads = config["num_attention_heads"]
        if not is_first:
            self.attn_norm = nn.LayerNorm(hidden, eps=eps, bias=norm_bias)
        self.joined = nn.Linear(hidden, 3 * hidden, bias=attention_bias)
        self.mixed = nn.Linear(hidden, hidden, bias=attention_bias)
        self.mlp_norm = nn.LayerNorm(hidden, eps=eps, bias=norm_bias)
        self.up = nn.Linear(hidden, 2 * inner, bias=mlp_bias)
        self.down = nn.Linear(inner, hidden, bias=mlp_bias)
        self._activation = activation(config.get("hidden_activation", "gelu"))

    def __call__(self, states: mx.array, mask: mx.array) -> mx.array:
        normed = states
        if "attn_norm" in self:
            normed = self.attn_norm(states)
        queries, keys, values = mx.split(self.joined(normed), 3, axis=-1)
        mixed = attend(
            rotated(split_heads(queries, self.num_heads), self._base),
            rotated(split_heads(keys, self.num_heads), self._base),
            split_heads(values, self.num_heads),
            mask,
        )
        states = states + self.mixed(mixed)
        inner, gate = mx.split(self.up(self.mlp_norm(states)), 2, axis=-1)
        added: mx.array = self.down(self._activation(inner) * gate)
        return states + added


class ModernBert(nn.Module):  # type: ignore[misc]
    """Hidden states `[rows, tokens, hidden]` of token ids `[rows, tokens]`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        eps = config.get("norm_eps", 1e-5)
        bias = config.get("norm_bias", False)
        self._reach = config.get("local_attention", 128) // 2
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps, bias=bias)
        self.layers = [
            Layer(config, kind, index == 0)
            for index, kind in enumerate(layer_kinds(config))
        ]
        self.final_norm = nn.LayerNorm(hidden, eps=eps, bias=bias)
        self._config = dict(config)

    def add_classifier(self, num_labels: int) -> None:
        """Give it the layers of a model that scores."""
        config = self._config
        hidden = config["hidden_size"]
        eps = config.get("norm_eps", 1e-5)
        self.head = nn.Linear(hidden, hidden, bias=config.get("classifier_bias", False))
        self.head_norm = nn.LayerNorm(
            hidden, eps=eps, bias=config.get("norm_bias", False)
        )
        self.classifier = nn.Linear(hidden, num_labels)

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        states = self.norm(self.words(tokens))
        full = padding_mask(lengths, tokens.shape[1])
        near = window_mask(full, self._reach)
        for layer in self.layers:
            states = layer(states, near if layer.is_sliding else full)
        normed: mx.array = self.final_norm(states)
        return normed

    def scores(self, states: mx.array, lengths: mx.array) -> mx.array:
        """Logits `[rows, labels]` of a classifier."""
        pooled = states[:, 0]
        if self._config.get("classifier_pooling", "cls") == "mean":
            pooled = mean_of(states, lengths)
        activate = activation(self._config.get("classifier_activation", "gelu"))
        pooled = self.head_norm(activate(self.head(pooled)))
        logits: mx.array = self.classifier(pooled)
        return logits


def mean_of(states: mx.array, lengths: mx.array) -> mx.array:
    """The mean of each row's tokens: `[rows, hidden]`."""
    places = mx.arange(states.shape[1])
    weights = (places[None, :] < lengths[:, None])[..., None].astype(states.dtype)
    return (states * weights).sum(axis=1) / lengths[:, None].astype(states.dtype)
