"""BERT and its kin: positions are learned, norms come after what they follow.

RoBERTa and XLM-RoBERTa are the same but for two things: positions begin after the
padding's id, and a classifier has a hidden layer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.models.encoders.activations import activation
from rvllm_local.models.encoders.attention import attend, padding_mask, split_heads

# The published names, and those here. In order: a later one may be part of an earlier.
RENAMED = (
    (".gamma", ".weight"),
    (".beta", ".bias"),
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "kinds"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer.", "layers."),
    (".attention.self.", "."),
    (".attention.output.dense", ".mixed"),
    (".attention.output.LayerNorm", ".mixed_norm"),
    (".intermediate.dense", ".up"),
    (".output.dense", ".down"),
    (".output.LayerNorm", ".norm"),
    ("pooler.dense", "pooler"),
    ("classifier.dense", "classifier_dense"),
    ("classifier.out_proj", "classifier"),
)


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then a feed-forward part, each with its norm behind it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        inner = config["intermediate_size"]
        eps = config.get("layer_norm_eps", 1e-12)
        self.num_heads = config["num_attention_heads"]
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.mixed = nn.Linear(hidden, hidden)
        self.mixed_norm = nn.LayerNorm(hidden, eps=eps)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self._activation = activation(config.get("hidden_act", "gelu"))

    def __call__(self, states: mx.array, mask: mx.array) -> mx.array:
        mixed = attend(
            split_heads(self.query(states), self.num_heads),
            split_heads(self.key(states), self.num_heads),
            split_heads(self.value(states), self.num_heads),
            mask,
        )
        states = self.mixed_norm(states + self.mixed(mixed))
        inner = self._activation(self.up(states))
        normed: mx.array = self.norm(states + self.down(inner))
        return normed


class Bert(nn.Module):  # type: ignore[misc]
    """Hidden states `[rows, tokens, hidden]` of token ids `[rows, tokens]`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self._is_roberta = config["model_type"] != "bert"
        self._first_position = 0
        if self._is_roberta:
            self._first_position = config.get("pad_token_id", 1) + 1
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.positions = nn.Embedding(config["max_position_embeddings"], hidden)
        self.kinds = nn.Embedding(config.get("type_vocab_size", 2), hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.get("layer_norm_eps", 1e-12))
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]

    @staticmethod
    def longest(config: Mapping[str, Any]) -> int:
        """Tokens that have a position."""
        positions: int = config["max_position_embeddings"]
        if config["model_type"] == "bert":
            return positions
        return positions - int(config.get("pad_token_id", 1)) - 1

    def add_classifier(self, num_labels: int) -> None:
        """Give it the layers of a model that scores."""
        hidden = self.words.weight.shape[1]
        if self._is_roberta:
            self.classifier_dense = nn.Linear(hidden, hidden)
        else:
            self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, num_labels)

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        """`kinds` is 1 for tokens of a pair's second text, in BERT alone."""
        width = tokens.shape[1]
        places = mx.arange(width) + self._first_position
        if self._is_roberta:
            kinds = mx.zeros_like(kinds)
        embedded = self.words(tokens) + self.positions(places) + self.kinds(kinds)
        states: mx.array = self.norm(embedded)
        mask = padding_mask(lengths, width)
        for layer in self.layers:
            states = layer(states, mask)
        return states

    def scores(self, states: mx.array, lengths: mx.array) -> mx.array:
        """Logits `[rows, labels]` of a classifier."""
        first = states[:, 0]
        if self._is_roberta:
            pooled = mx.tanh(self.classifier_dense(first))
        else:
            pooled = mx.tanh(self.pooler(first))
        logits: mx.array = self.classifier(pooled)
        return logits
