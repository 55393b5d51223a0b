"""Attention over gathered keys and values, in MLX's own operations."""

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
    """`[rows, heads, query_len, key_dim]` in, `[rows, heads, query_len, value_dim]` out.

    Masks are as MLX's attention takes them. Raises `UnsupportedModelError` for a
    soft-cap together with sinks or with a mask that is added.
    """
    if call.softcap:
        return _capped_attention(queries, keys, values, call, mask)
    return mx.fast.scaled_dot_product_attention(
        queries,
        keys,
        values,
        scale=call.scale,
        mask=mask,
        sinks=call.sinks,
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
            "a layer has both a soft-cap and attention sinks, "
            "which are not computed densely"
        )
    rows, heads, query_len, dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # [rows, kv_heads, group, query_len, dim]
    grouped = queries.reshape(rows, kv_heads, group, query_len, dim)
    grouped = grouped * call.scale
    transposed = keys[:, :, None].swapaxes(-1, -2)
    logits = cap_logits(grouped @ transposed, call.softcap)
    if mask is not None:
        hidden = mx.array(-mx.inf, logits.dtype)
        logits = mx.where(_seen(mask, logits), logits, hidden)
    weights = mx.softmax(logits, axis=-1, precise=True)
    attended = weights @ values[:, :, None]
    return attended.reshape(rows, heads, query_len, values.shape[-1])


def _seen(mask: mx.array | str, logits: mx.array) -> mx.array:
    """True where a query may see a key of `logits` `[..., query_len, width]`."""
    query_len, width = logits.shape[-2:]
    if isinstance(mask, str):
        last_seen = mx.arange(width - query_len, width)
        return mx.arange(width) <= last_seen[:, None]
    if mask.dtype != mx.bool_:
        raise UnsupportedModelError("a layer that caps its logits adds a mask to them")
    if mask.ndim == 4:
        return mask[:, :, None]
    return mask


def chunk_mask(
    geometry: CallGeometry,
    group: int,
    width: int,
) -> mx.array | str:
    """The mask of one row's chunk against its gathered context of `width` tokens."""
    view = geometry.groups[group]
    if view.window is None:
        return "causal"
    context = int(geometry.context_lens[0])
    has_all = int(view.first_positions[0]) == 0
    if has_all and context <= view.window:
        return "causal"
    visible = visible_keys(geometry, group, width)
    return mx.array(visible[0])
