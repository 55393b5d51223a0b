"""Decoders whose last hidden states are pooled: Qwen3, Gemma 3 and their kin.

The definitions are mlx-lm's. Rows are padded behind their ends, where a causal model's
earlier tokens do not look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._labels: mx.array | None = None

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        states: mx.array = self.decoder.model(tokens)
        return states

    def score_by(self, labels: mx.array) -> None:
        """Score with these rows `[labels, hidden]` of a head."""
        self._labels = labels

    def scores(self, states: mx.array, lengths: mx.array) -> mx.array:
        """Logits `[rows, labels]` behind the last token. Only after `score_by`."""
        assert self._labels is not None
        rows = mx.arange(states.shape[0])
        last = states[rows, lengths - 1]
        return last.astype(mx.float32) @ self._labels.T

    def head_rows(self, token_ids: Sequence[int]) -> mx.array:
        """The rows of the head `[tokens, hidden]` that give these tokens' logits."""
        chosen_ids = mx.array(list(token_ids))
        head = getattr(self.decoder, "lm_head", None)
        if head is None:
            rows: mx.array = self.decoder.model.embed_tokens(chosen_ids)
            return rows
        if "scales" not in head:
            weights: mx.array = head.weight
            return weights[chosen_ids]
        return mx.dequantize(
            head.weight[chosen_ids],
            head.scales[chosen_ids],
            head.biases[chosen_ids],
            group_size=head.group_size,
            bits=head.bits,
        )


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
