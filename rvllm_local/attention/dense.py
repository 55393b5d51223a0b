"""Attention over keys and values that were gathered, in MLX's own operations, for any number of queries."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.geometry import CallGeometry, visible_keys
from rvllm_local.errors import UnsupportedModelError


def dense_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    call: AttentionCall,
    mask: mx.array | str | None,
) -> mx.array:
    """`[rows, heads, query_len, key_dim]` in, `[rows, heads, query_len, value_dim]` out; masks as MLX's attention takes them.

    Raises `UnsupportedModelError` for what capped attention has no arithmetic for here.
    """
    if call.softcap:
        return _capped_attention(queries, keys, values, call, mask)
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=call.scale, mask=mask, sinks=call.sinks
    )


def cap_logits(scores: mx.array, softcap: float) -> mx.array:
    """Scores bounded by -`softcap` and `softcap`, and little changed near zero."""
    return mx.tanh(scores / softcap) * softcap


def _capped_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    call: AttentionCall,
    mask: mx.array | str | None,
) -> mx.array:
    if call.sinks is not None:
        raise UnsupportedModelError(
            "a layer has both a soft-cap and attention sinks, which are not computed densely"
        )
    rows, heads, query_len, dim = queries.shape
    kv_heads, width = keys.shape[1], keys.shape[2]
    grouped = (
        queries.reshape(rows, kv_heads, heads // kv_heads, query_len, dim) * call.scale
    )
    logits = cap_logits(grouped @ keys[:, :, None].swapaxes(-1, -2), call.softcap)
    if isinstance(mask, str):
        mask = mx.arange(width) <= mx.arange(width - query_len, width)[:, None]
    if mask is not None:
        if mask.dtype != mx.bool_:
            raise UnsupportedModelError(
                "a layer that caps its logits adds a mask to them"
            )
        mask = mask[:, :, None] if mask.ndim == 4 else mask
        logits = mx.where(mask, logits, mx.array(-mx.inf, logits.dtype))
    weights = mx.softmax(logits, axis=-1, precise=True)
    return (weights @ values[:, :, None]).reshape(
        rows, heads, query_len, values.shape[-1]
    )


def chunk_mask(geometry: CallGeometry, group: int, width: int) -> mx.array | str:
    """The mask of one row's chunk against its gathered context of `width` tokens."""
    view = geometry.groups[group]
    context = int(geometry.context_lens[0])
    if view.window is None or (
        context <= view.window and int(view.first_positions[0]) == 0
    ):
        return "causal"
    return mx.array(visible_keys(geometry, group, width)[0])
