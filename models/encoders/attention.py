"""Attention of a token to the tokens on both of its sides, and who may see whom."""

from __future__ import annotations

import mlx.core as mx


def padding_mask(lengths: mx.array, width: int) -> mx.array:
    """Which keys are tokens: `[rows, 1, 1, width]`, for rows of `lengths` tokens."""
    places = mx.arange(width)
    return (places[None, :] < lengths[:, None])[:, None, None, :]


def window_mask(padding: mx.array, reach: int) -> mx.array:
    """`[rows, 1, width, width]`: keys at most `reach` tokens from the query.

    The query of a place behind a row's end sees that place, so that it sees any.
    """
    width = padding.shape[-1]
    places = mx.arange(width)
    distance = mx.abs(places[:, None] - places[None, :])
    is_near = (distance <= reach)[None, None]
    is_itself = (distance == 0)[None, None]
    return mx.logical_or(mx.logical_and(padding, is_near), is_itself)


def split_heads(states: mx.array, num_heads: int) -> mx.array:
    """`[rows, tokens, heads * size]` as `[rows, heads, tokens, size]`."""
    rows, tokens, _ = states.shape
    return states.reshape(rows, tokens, num_heads, -1).swapaxes(1, 2)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: mx.array,
) -> mx.array:
    """Softmax attention; `[rows, heads, tokens, size]` in, heads joined out."""
    scale = queries.shape[-1] ** -0.5
    mixed = mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask
    )
    rows, _, tokens, _ = mixed.shape
    return mixed.swapaxes(1, 2).reshape(rows, tokens, -1)


def rotated(states: mx.array, theta: float) -> mx.array:
    """Rotary positions from 0 on, halves of a head turned against each other."""
    return mx.fast.rope(
        states, states.shape[-1], traditional=False, base=theta, scale=1.0, offset=0
    )
