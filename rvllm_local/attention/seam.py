"""The seam: cache objects that mlx-lm's models write to, and the attention function put in their place.

A model's layer calls `cache.update_and_fetch` and then `scaled_dot_product_attention(..., cache=cache)`; both
end here, and the back end does the work. Any other cache object goes to mlx-lm's own function, untouched.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import AttentionCall, CallSession, KVBackend
from rvllm_local.attention.dense import chunk_mask, dense_attention
from rvllm_local.attention.geometry import CallGeometry, visible_keys
from rvllm_local.attention.rotation import LayerOffset, StepOffset
from rvllm_local.attention.softcap import CAP_NAME, install_softcap
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot, StateSlot
from rvllm_local.memory.state import Arrays
from rvllm_local.metal_kernels import Rotation

ATTENTION_NAME = "scaled_dot_product_attention"


class PagedCache:
    """One layer's cache for one model call.

    `offset` is the position of the first new token: an int for one row, `[rows]` for several. With `dense`
    the layer does its own attention arithmetic and gets the gathered context instead of the paged path.
    """

    def __init__(
        self,
        slot: LayerSlot,
        session: CallSession,
        geometry: CallGeometry,
        *,
        dense: bool,
        offset: int | mx.array | LayerOffset,
        window: int | None,
    ) -> None:
        self.slot = slot
        self.window = window
        self.session = session
        self.geometry = geometry
        self.dense = dense
        self.offset = offset
        self.keys: mx.array | None = (
            None  # as mlx-lm's caches have them; models may order their work by them
        )
        self.values: mx.array | None = None
        self._has_new = False  # keys were written since the last attention

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        self.session.write(self.slot, keys, values)
        self._has_new = True
        self.keys, self.values = self._gathered() if self.dense else (keys, values)
        return self.keys, self.values

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The whole context again, for a layer that reads another layer's."""
        return self._gathered()

    def _gathered(self) -> tuple[mx.array, mx.array]:
        if isinstance(self.offset, LayerOffset) and self.offset.waits:
            raise UnsupportedModelError(
                "a layer reads its context densely, which cannot be rotated later"
            )
        return self.session.gather(self.slot)

    def _rotation(self, width: int) -> Rotation | None:
        count, self._has_new = 1 + self._has_new, False
        return (
            self.offset.take(count, width)
            if isinstance(self.offset, LayerOffset)
            else None
        )

    def make_mask(
        self, query_len: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """What the model may hand on as `mask`; arrays only where the model itself will use them."""
        if window_size is not None and (
            self.window is None or window_size < self.window
        ):
            raise UnsupportedModelError(
                f"a layer asks for a window of {window_size} that its cache does not declare"
            )
        if query_len == 1 and not (self.dense or return_array):
            return None
        view = self.geometry.groups[self.slot.group]
        width = view.tables.shape[1] * BLOCK_TOKENS
        if self.geometry.rows == 1:  # a lone row is gathered to its exact length
            width = int(self.geometry.context_lens[0] - view.first_positions[0])
        if return_array or (self.dense and self.geometry.rows > 1):
            return mx.array(
                visible_keys(self.geometry, self.slot.group, width)[:, None]
            )
        if query_len > 1:
            return (
                chunk_mask(self.geometry, self.slot.group, width)
                if self.dense
                else "causal"
            )
        if self.dense and view.window is not None and width > view.window:
            return mx.array(
                visible_keys(self.geometry, self.slot.group, width)[:, None]
            )
        return None

    def attend(
        self, queries: mx.array, call: AttentionCall, mask: mx.array | str | None
    ) -> mx.array:
        """Attention over the layer's context. A mask array is the model's own, and is obeyed."""
        if not isinstance(mask, mx.array):
            if queries.shape[2] > 1:
                return self.session.prefill(self.slot, queries, call)
            rotation = self._rotation(queries.shape[3])
            return self.session.decode(
                self.slot, queries, dataclasses.replace(call, rotation=rotation)
            )
        keys, values = self._gathered()
        return dense_attention(queries, keys, values, call, mask)


def make_caches(
    layout: KVLayout,
    backend: KVBackend,
    geometry: CallGeometry,
    *,
    dense: bool,
    by_row: bool = False,
    state: Arrays = (),
) -> list[Any]:
    """The cache list for one model call, in the model's layer order. `by_row`: attend each row by itself.

    `state` is what the recurrent layers begin with; nothing at the beginning of a sequence.
    """
    offset = (
        int(geometry.positions[0])
        if geometry.rows == 1
        else mx.array(geometry.positions)
    )
    session = backend.begin(geometry, by_row=by_row)
    return session_caches(
        layout, session, geometry, dense=dense, offset=offset, state=state
    )


def session_caches(
    layout: KVLayout,
    session: CallSession,
    geometry: CallGeometry,
    *,
    dense: bool,
    offset: int | mx.array | StepOffset,
    state: Arrays = (),
) -> list[Any]:
    """The cache list over a session that exists already. With a `StepOffset` rotations wait for attention."""

    def cache_of(slot: LayerSlot | StateSlot | None) -> Any:
        if slot is None:
            return None
        if isinstance(slot, StateSlot):
            return _state_cache(slot, state)
        layer_offset = LayerOffset(offset) if isinstance(offset, StepOffset) else offset
        return PagedCache(
            slot,
            session,
            geometry,
            dense=dense,
            offset=layer_offset,
            window=layout.groups[slot.group].window,
        )

    return _nested([cache_of(slot) for slot in layout.slots], layout.nesting)


def state_after(layout: KVLayout, caches: Sequence[Any]) -> Arrays:
    """What the recurrent layers keep after a call with these caches, rows first."""
    leaves: list[Any] = []
    for cache, count in zip(caches, layout.nesting or (0,) * len(caches), strict=True):
        leaves.extend(cache.caches if count else [cache])
    return tuple(
        part
        for slot, cache in zip(layout.slots, leaves, strict=True)
        if isinstance(slot, StateSlot)
        for part in cache.cache
    )


def _state_cache(slot: StateSlot, state: Arrays) -> Any:
    from mlx_lm.models.cache import ArraysCache

    cache = ArraysCache(slot.count)
    if state:
        cache.cache = list(state[slot.first : slot.first + slot.count])
    return cache


def _nested(leaves: list[Any], nesting: Sequence[int]) -> list[Any]:
    if not any(nesting):
        return leaves
    from mlx_lm.models.cache import CacheList

    remaining, caches = iter(leaves), []
    for count in nesting:
        caches.append(
            CacheList(*(next(remaining) for _ in range(count)))
            if count
            else next(remaining)
        )
    return caches


def install(model: nn.Module) -> bool:
    """Route the attention of every layer of `model` through the seam; safe to call again.

    Returns True if each attention class calls `scaled_dot_product_attention` itself, or has a stand-in that attends,
    so that all its layers can take the paged path; False if one does its own arithmetic and needs dense arrays.
    """
    paged = True
    for cls in _attention_classes(model):
        module = sys.modules[cls.__module__]
        uses_seam = hasattr(module, ATTENTION_NAME) and _mentions(
            cls.__call__, ATTENTION_NAME
        )
        is_capped = _mentions(cls.__call__, CAP_NAME)
        paged = paged and (uses_seam or is_capped)
        if is_capped:
            install_softcap(cls, _attends)
        if uses_seam and not hasattr(getattr(module, ATTENTION_NAME), "original"):
            setattr(module, ATTENTION_NAME, _routed(getattr(module, ATTENTION_NAME)))
    return paged


def _attention_classes(model: nn.Module) -> set[type]:
    """Classes in the model whose `__call__` writes to a cache."""
    return {
        type(module)
        for module in model.modules()
        if _mentions(type(module).__call__, "update_and_fetch")
    }


def _mentions(function: Callable[..., Any], name: str) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and name in code.co_names


def _attends(cache: object) -> bool:
    return isinstance(cache, PagedCache) and not cache.dense


def _routed(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def scaled_dot_product_attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if isinstance(cache, PagedCache) and not cache.dense:
            return cache.attend(queries, AttentionCall(scale, sinks), mask)
        return original(
            queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
        )

    scaled_dot_product_attention.original = original  # type: ignore[attr-defined]
    return scaled_dot_product_attention


def cache_kinds(caches: Iterable[object]) -> Sequence[str]:
    """Class names of a model's own caches, for error messages."""
    return sorted({type(cache).__name__ for cache in caches})
