"""Decoders whose last hidden states are pooled: Qwen3, Gemma 3 and their kin.

The definitions are mlx-lm's. Rows are padded behind their ends, where a causal model's
earlier tokens do not look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.models.encoders.attention import padding_mask, window_mask
from rvllm_local.models.families import build_model


class CausalEncoder(nn.Module):  # type: ignore[misc]
    """A causal language model without its head."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.decoder = build_model(config)

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        states: mx.array = self.decoder.model(tokens)
        return states


class BidirectionalGemma(nn.Module):  # type: ignore[misc]
    """Gemma 3 whose tokens look both ways, as EmbeddingGemma's do."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.decoder = build_model(config)
        # A window of n tokens reaches n // 2 to each side.
        self._reach = int(config["sliding_window"]) // 2

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        inner = self.decoder.model
        states = inner.embed_tokens(tokens)
        scale = mx.array(inner.args.hidden_size**0.5, mx.bfloat16)
        states = states * scale.astype(states.dtype)
        full = padding_mask(lengths, tokens.shape[1])
        near = window_mask(full, self._reach)
        for layer in inner.layers:
            states = layer(states, near if layer.self_attn.is_sliding else full)
        normed: mx.array = inner.norm(states)
        return normed
