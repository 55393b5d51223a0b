"""Codes in MLX's words, and the sizes of its groups."""

from __future__ import annotations

import mlx.core as mx

GROUP_SIZES = (128, 64, 32)  # of MLX, the largest first
WORD = 32


def divided_size(size: int) -> int:
    """The largest of MLX's groups of which groups of `size` are made."""
    return next(part for part in GROUP_SIZES if size % part == 0)


def codes_of(words: mx.array, bits: int) -> mx.array:
    """`[rows, columns]` of words `[rows, columns * bits / 32]`, the lowest bits first."""
    shifts = mx.arange(0, WORD, bits, dtype=mx.uint32)
    codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.reshape(words.shape[0], -1)


def words_of(codes: mx.array, bits: int) -> mx.array:
    """Rows of codes as MLX packs them, the lowest bits first."""
    shifts = mx.arange(0, WORD, bits, dtype=mx.uint32)
    grouped = codes.reshape(codes.shape[0], -1, WORD // bits)
    return (grouped << shifts).sum(axis=-1).astype(mx.uint32)


def numbers_of(
    codes: mx.array, zeros: mx.array, scales: mx.array, groups: mx.array
) -> mx.array:
    """`scale * (code - zero)` in float32, `[outputs, inputs]` as the codes are.

    zeros and scales: `[outputs, groups]`. groups: the group of each input, in any order.
    """
    of_inputs = groups.astype(mx.int32)
    centres = zeros.astype(mx.float32)[:, of_inputs]
    factors = scales.astype(mx.float32)[:, of_inputs]
    return (codes.astype(mx.float32) - centres) * factors
