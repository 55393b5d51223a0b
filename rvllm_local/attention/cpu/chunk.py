"""Attention on a CPU, of one row's prefill chunk or of one token a row.

MLX multiplies and numpy exponentiates: MLX's `exp` takes about 10 ns an element on a
CPU and numpy's vectorized one about 1, and most of a chunk's time was softmax. Queries
go in blocks, and a block multiplies only the keys that it can see.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.dense import cap_logits

_QUERY_BLOCK = 128
_MANY_SCORES = 4096  # of a decode call; fewer are not worth waiting for on the host


def is_on_host(queries: mx.array) -> bool:
    """True if a CPU computes these, in a type that numpy has.

    Then numpy's exponentials are quicker.
    """
    if queries.dtype != mx.float32:
        return False
    return mx.default_device() == mx.Device(mx.cpu)


def chunk_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    visible: npt.NDArray[np.bool_],
    call: AttentionCall,
) -> mx.array:
    """Softmax attention of a chunk's queries, evaluated. float32 only.

    `[1, heads, query_len, key_dim]` in, `[1, heads, query_len, value_dim]` out. `keys`
    and `values` are `[1, kv_heads, width, dim]`, `visible` is `[query_len, width]`, and
    each query sees at least one key.
    """
    query_len = queries.shape[2]
    outputs = []
    for start in range(0, query_len, _QUERY_BLOCK):
        rows = visible[start : start + _QUERY_BLOCK]
        block = queries[0, :, start : start + len(rows)]
        columns = np.flatnonzero(rows.any(axis=0))
        seen = slice(int(columns[0]), int(columns[-1]) + 1)
        attended = _block_attention(
            block, keys[0, :, seen], values[0, :, seen], rows[:, seen], call
        )
        # A block's scores are many: they are gone before the next block's are there.
        mx.eval(attended)
        outputs.append(attended)
    if len(outputs) == 1:
        return outputs[0][None]
    return mx.concatenate(outputs, axis=1)[None]


def _block_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    visible: npt.NDArray[np.bool_],
    call: AttentionCall,
) -> mx.array:
    """Attention of a block's queries `[heads, rows, key_dim]` to the keys they see."""
    heads, rows, dim = queries.shape
    kv_heads = keys.shape[0]
    sink = None
    if call.sinks is not None:
        host_sinks = np.array(call.sinks.astype(mx.float32))
        sink = host_sinks.reshape(kv_heads, -1, 1, 1)
    stacked = queries.reshape(kv_heads, -1, dim) * call.scale
    scores = stacked @ keys.swapaxes(-1, -2)  # [kv_heads, group * rows, keys]
    mx.eval(scores)
    sums = _exponentiate(scores, visible, sink, call.softcap)
    weighted = scores @ values
    attended = weighted / mx.array(sums)
    return attended.reshape(heads, rows, -1)


def token_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    call: AttentionCall,
    bias: mx.array | None,
) -> mx.array:
    """Softmax attention of one query a row. float32 only; sinks are left out.

    `[rows, heads, 1, key_dim]` in, `[rows, heads, 1, value_dim]` out. The heads that
    share a KV head are one product. `bias` `[rows, 1, 1, width]` is added to the
    logits.
    """
    rows, heads, _, dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, dim)
    grouped = grouped * call.scale
    scores = grouped @ keys.swapaxes(-1, -2)
    mx.eval(scores)
    weights = np.array(scores, copy=False)
    if call.softcap:
        _cap(weights, call.softcap)
    if bias is not None:
        weights += np.array(bias, copy=False)
    sums = _to_weights(weights)
    weighted = scores @ values
    attended = weighted / mx.array(sums)
    return attended.reshape(rows, heads, 1, values.shape[-1])


def _exponentiate(
    scores: mx.array,
    visible: npt.NDArray[np.bool_],
    sink: npt.NDArray[np.float32] | None,
    softcap: float,
) -> npt.NDArray[np.float32]:
    """Turn evaluated scores into unnormalized weights in place; return their sums.

    The sums are `[kv_heads, group * rows, 1]`. Nobody else holds `scores`, so writing
    to its memory is safe.
    """
    kv_heads, stacked, width = scores.shape
    weights = np.array(scores, copy=False)
    weights = weights.reshape(kv_heads, -1, len(visible), width)
    if softcap:
        _cap(weights, softcap)
    if not visible.all():
        np.copyto(weights, -np.inf, where=~visible)
    sums = _to_weights(weights, sink)
    return np.reshape(sums, (kv_heads, stacked, 1))


def _cap(scores: npt.NDArray[np.float32], softcap: float) -> None:
    """Bound scores in place."""
    scores *= np.float32(1.0 / softcap)
    np.tanh(scores, out=scores)
    scores *= np.float32(softcap)


def _to_weights(
    scores: npt.NDArray[np.float32],
    sink: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Exponentiate scores `[..., width]` in place, less the largest of each row.

    Returns the rows' sums `[..., 1]`.
    """
    largest = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        largest = np.maximum(largest, sink)
    scores -= largest
    np.exp(scores, out=scores)
    sums: npt.NDArray[np.float32] = scores.sum(axis=-1, keepdims=True)
    if sink is not None:
        sums += np.exp(sink - largest)
    return sums


def grouped_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    call: AttentionCall,
    bias: mx.array | None,
) -> mx.array:
    """Softmax attention of one query a row.

    The heads that share a KV head are one matrix product.
    """
    rows, heads, _, dim = queries.shape
    num_scores = rows * heads * keys.shape[2]
    if num_scores >= _MANY_SCORES and is_on_host(queries):
        return token_attention(queries, keys, values, call, bias)
    kv_heads = keys.shape[1]
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, dim)
    grouped = grouped * call.scale
    scores = grouped @ keys.swapaxes(-1, -2)
    if call.softcap:
        scores = cap_logits(scores, call.softcap)
    if bias is not None:
        scores = scores + bias
    weights = mx.softmax(scores, axis=-1, precise=True)
    attended = weights @ values
    return attended.reshape(rows, heads, 1, values.shape[-1])
