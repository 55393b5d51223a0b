"""A session that ends a model call after two layers of each group.

Two layers show how much memory a layer takes: only for back ends that evaluate layer by
layer, where all layers of a group need the same.
"""

from __future__ import annotations

from collections import Counter

import mlx.core as mx

from rvllm_local.attention.backend import AttentionCall, CallSession
from rvllm_local.memory.layout import LayerSlot

_LAYERS = 2  # the second one's write evaluates what follows attention in the first


class EnoughLayersError(Exception):
    """Ends the call; whoever made the session catches it."""


class BriefSession:
    """Hands every call on to `session`.

    Raises `EnoughLayersError` once each group had its layers.
    """

    def __init__(self, session: CallSession, num_groups: int) -> None:
        self._session = session
        self._num_groups = num_groups
        self._seen: Counter[int] = Counter()  # layers by group

    def write(
        self,
        slot: LayerSlot,
        keys: mx.array,
        values: mx.array,
    ) -> None:
        self._session.write(slot, keys, values)

    def gather(self, slot: LayerSlot) -> tuple[mx.array, mx.array]:
        return self._session.gather(slot)

    def decode(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        attended = self._session.decode(slot, queries, call)
        self._count(slot, attended)
        return attended

    def prefill(
        self,
        slot: LayerSlot,
        queries: mx.array,
        call: AttentionCall,
    ) -> mx.array:
        attended = self._session.prefill(slot, queries, call)
        self._count(slot, attended)
        return attended

    def _count(self, slot: LayerSlot, attended: mx.array) -> None:
        self._seen[slot.group] += 1
        if len(self._seen) < self._num_groups:
            return
        if min(self._seen.values()) >= _LAYERS:
            mx.eval(attended)
            raise EnoughLayersError
