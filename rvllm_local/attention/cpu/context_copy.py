"""A dense copy of one context, for the prompt that is prefilling.

Each chunk of a prompt reads the whole context again. The copy follows blocks and their
versions, so it cannot be out of date: a block that was written since, or that is
another one, is copied again. It knows no sequences and serves the longest context that
comes.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.lazy_zeros import lazy_zeros

_NOBODY = -1
_BITS = {2: mx.uint16, 4: mx.uint32}  # by bytes of an element
# A context so many times as long as another one keeps the copy for a while.
_MUCH_LONGER = 4
# Shorter contexts that are turned away before one takes the copy over.
_PATIENCE = 16


class ContextCopy:
    """Keys and values of one context in one group.

    They are `[layers, K|V, kv_heads, tokens, width]`, allocated once.
    """

    def __init__(self, shape: KVShape, num_blocks: int) -> None:
        self._shape = shape
        planes = (
            shape.num_layers,
            2,
            shape.kv_heads,
            num_blocks * BLOCK_TOKENS,
            shape.width,
        )
        self._array = lazy_zeros(planes, shape.dtype)
        self._view = host_bits(self._array)
        self._block_ids = np.full(num_blocks, _NOBODY, dtype=np.int64)
        self._versions = np.zeros(num_blocks, dtype=np.int64)
        self._turned_away = 0
        # Of the call that began last:
        self._table: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._table_versions: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._first = 0
        self._done: set[int] = set()  # layers

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def begin(
        self, table: npt.NDArray[np.int32], versions: npt.NDArray[np.int64]
    ) -> bool:
        """Start a call over the context in the blocks `table`.

        `versions` are those of all the arena's blocks. False if the context is too
        long, or a much longer one is being prefilled: then it is to be gathered.
        """
        count = len(table)
        if count > len(self._block_ids) or not self._is_free_for(table):
            return False
        current = versions[table]
        same_block = self._block_ids[:count] == table
        same_version = self._versions[:count] == current
        same = same_block & same_version
        if same.all():
            self._first = count
        else:
            self._first = int(same.argmin())
        self._block_ids[self._first :] = _NOBODY  # until every layer has them
        self._table = table
        self._table_versions = current
        self._done.clear()
        return True

    @property
    def first_stale(self) -> int:
        """The first block of the call's context that `put` has to bring."""
        return self._first

    def needs(self, layer: int) -> bool:
        """True until `put` was called for this layer in the call that began last."""
        return layer not in self._done

    def put(
        self,
        layer: int,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        """Take one layer's keys and values `[1, kv_heads, tokens, dim]`.

        They are those of the blocks from `first_stale` on.
        """
        first = self._first
        end = len(self._table)
        tokens = slice(first * BLOCK_TOKENS, end * BLOCK_TOKENS)
        mx.eval(keys, values)
        shape = self._shape
        self._view[layer, 0, :, tokens, : shape.key_dim] = host_bits(keys)[0]
        self._view[layer, 1, :, tokens, : shape.value_dim] = host_bits(values)[0]
        self._done.add(layer)
        if len(self._done) == self._shape.num_layers:
            self._block_ids[first:end] = self._table[first:]
            self._versions[first:end] = self._table_versions[first:]

    def context(self, layer: int, num_tokens: int) -> tuple[mx.array, mx.array]:
        """The first keys and values of one layer: `[1, kv_heads, num_tokens, dim]`.

        Nothing is copied.
        """
        key_dim = self._shape.key_dim
        value_dim = self._shape.value_dim
        keys = self._array[layer, 0:1, :, :num_tokens, :key_dim]
        values = self._array[layer, 1:2, :, :num_tokens, :value_dim]
        return keys, values

    def _is_free_for(self, table: npt.NDArray[np.int32]) -> bool:
        num_held = int((self._block_ids != _NOBODY).sum())
        is_same_context = self._block_ids[0] == table[0]
        is_long = len(table) * _MUCH_LONGER >= num_held
        if is_same_context or is_long or self._turned_away >= _PATIENCE:
            self._turned_away = 0
            return True
        self._turned_away += 1
        return False


def host_bits(array: mx.array) -> npt.NDArray[np.generic]:
    """The memory of an evaluated array as numpy sees it.

    numpy has no bfloat16, so floats are bit patterns.
    """
    bits = array
    if array.dtype != mx.int8:
        bits = array.view(_BITS[array.dtype.size])
    return np.array(bits, copy=False)
