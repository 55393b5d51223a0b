"""A one-row decode call's new keys and values while they wait in the graph.

The host can store them only once they are computed. If it waited at every layer, the
processor would idle while the next layer is described. So attention gets them beside
what is stored, and they are stored before the next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy.typing as npt

from rvllm_local.attention.cpu.context_copy import host_bits
from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.layout import LayerSlot


class PendingKV:
    """The one token of a call of one row, layer by layer."""

    def __init__(self, geometry: CallGeometry) -> None:
        self._geometry = geometry
        # By group and layer: [K|V, kv_heads, 1, width].
        self._new: dict[int, dict[int, mx.array]] = {}
        # Where the token stands in each group's gathered context: [1].
        self._columns: list[mx.array] = []
        for view in geometry.groups:
            column = geometry.positions - view.first_positions
            self._columns.append(mx.array(column))

    def add(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        """Take keys and values, `[1, kv_heads, 1, width]` both."""
        layers = self._new.setdefault(slot.group, {})
        layers[slot.layer] = mx.concatenate([keys, values])

    def put_into(self, slot: LayerSlot, context: mx.array) -> mx.array:
        """`context` `[K|V, kv_heads, tokens, width]` as it will be stored.

        Unchanged if this layer wrote nothing.
        """
        layers = self._new.get(slot.group, {})
        new = layers.get(slot.layer)
        if new is None:
            return context
        column = self._columns[slot.group]
        return mx.slice_update(context, new, column, axes=[2])

    def store(self, arenas: Sequence[npt.NDArray[Any]]) -> None:
        """Compute what is not computed yet, and write it.

        Each of `arenas` is `[blocks, layers, K|V, kv_heads, BLOCK_TOKENS, width]`.
        """
        for group, layers in self._new.items():
            view = self._geometry.groups[group]
            block = view.write_blocks[0, 0]
            slot = view.write_slots[0, 0]
            new = mx.stack(list(layers.values()))
            mx.eval(new)
            token_bits = host_bits(new)[..., 0, :]
            arenas[group][block, list(layers), :, :, slot] = token_bits
        self._new.clear()
