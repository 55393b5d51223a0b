"""A one-row decode call's new keys and values while they wait in the graph.

The host can store them only once they are computed. Waiting for that at every layer would have the processor idle while
the next layer is described; so attention gets them beside what is stored, and they are stored before the next call.
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
        self._new: dict[
            int, dict[int, mx.array]
        ] = {}  # by group and layer: [K|V, kv_heads, 1, width]
        # The token's place in each group's gathered context: [1].
        self._places = [
            mx.array(geometry.positions - view.first_positions)
            for view in geometry.groups
        ]

    def add(self, slot: LayerSlot, keys: mx.array, values: mx.array) -> None:
        """Take `[1, kv_heads, 1, width]` twice."""
        self._new.setdefault(slot.group, {})[slot.layer] = mx.concatenate(
            [keys, values]
        )

    def put_into(self, slot: LayerSlot, context: mx.array) -> mx.array:
        """`context` `[K|V, kv_heads, tokens, width]` as it will be stored; unchanged if this layer wrote nothing."""
        new = self._new.get(slot.group, {}).get(slot.layer)
        return (
            context
            if new is None
            else mx.slice_update(context, new, self._places[slot.group], axes=[2])
        )

    def store(self, arenas: Sequence[npt.NDArray[Any]]) -> None:
        """Compute what is not computed yet, and write it to `[blocks, layers, K|V, kv_heads, BLOCK_TOKENS, width]` each."""
        for group, layers in self._new.items():
            view, new = self._geometry.groups[group], mx.stack(list(layers.values()))
            mx.eval(new)
            block, slot = view.write_blocks[0, 0], view.write_slots[0, 0]
            arenas[group][block, list(layers), :, :, slot] = host_bits(new)[..., 0, :]
        self._new.clear()
