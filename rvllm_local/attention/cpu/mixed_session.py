"""A decode call that also prefills, for back ends that are slowed by reading weights."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.cpu.session import ReferenceSession
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.layout import LayerSlot


class MixedSession:
    """A decode call that also prefills.

    All rows share the matrix products, which stream the weights once. Attention is that
    of a decode call for the first rows, and that of a prefill call for each chunk.
    """

    def __init__(
        self,
        whole: ReferenceSession,
        decode: ReferenceSession,
        chunks: Sequence[ReferenceSession],
    ) -> None:
        self._whole = whole
        self._decode = decode
        self._chunks = chunks

    def write(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        self._whole.write(slot, keys, values)

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        raise UnsupportedModelError("a mixed call has no common context to gather")

    def prefill(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        raise UnsupportedModelError("a mixed call has one query a row")

    def decode(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        start = self._decode.num_rows
        attended = [self._decode.decode(slot, queries[:start], call)]
        for chunk in self._chunks:
            end = start + chunk.query_len
            # [1, heads, query_len, dim]
            chunk_queries = queries[start:end].transpose(2, 1, 0, 3)
            chunk_attended = chunk.prefill(slot, chunk_queries, call)
            attended.append(chunk_attended.transpose(2, 1, 0, 3))
            start = end
        padding = len(queries) - start
        if padding > 0:  # rows that fill the call up; nobody reads them
            first = attended[0]
            shape = (padding, *first.shape[1:])
            attended.append(mx.zeros(shape, dtype=first.dtype))
        return mx.concatenate(attended, axis=0)
