"""The seam: caches that mlx-lm's models write to, and the attention that reads them.

A model's layer calls `cache.update_and_fetch` and then
`scaled_dot_product_attention(..., cache=cache)`. Both end here, and the back end does
the work. Any other cache object goes to mlx-lm's own function, untouched.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import AttentionCall, CallSession, KVBackend
from rvllm_local.attention.dense import chunk_mask, dense_attention
from rvllm_local.attention.geometry import CallGeometry, visible_keys
from rvllm_local.attention.in_order import Depths
from rvllm_local.attention.rotation import LayerOffset, StepOffset
from rvllm_local.attention.softcap import CAP_NAME, install_softcap
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot, StateSlot
from rvllm_local.memory.state import Arrays
from rvllm_local.metal_kernels import Rotation

ATTENTION_NAME = "scaled_dot_product_attention"
_ENGINE_MARK = "is_of_engine"  # on caches of recurrent layers


class PagedCache:
    """One layer's cache for one model call.

    `offset` is the position of the first new token: an int for one row, `[rows]` for
    several. With `dense` the layer does its own attention arithmetic: it gets the
    gathered context, and the paged path is not taken. So it is with `latent` and several
    tokens, for which the model makes keys and values of all heads.
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
        latent: bool = False,
    ) -> None:
        self.slot = slot
        self.window = window
        self.session = session
        self.geometry = geometry
        self.dense = dense or (latent and geometry.query_len > 1)
        self.keeps_latents = latent
        self.latent = latent and not self.dense
        self.offset = offset
        # As mlx-lm's caches have them; models may order their work by them.
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._has_new = False  # keys were written since the last attention

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        self.session.write(self.slot, keys, values)
        self._has_new = True
        if self.dense:
            keys, values = self._gathered()
        if self.latent:
            # The model multiplies the rotated part of its queries by this, and hands it
            # on as a mask.
            values = mx.eye(values.shape[-1], dtype=values.dtype)
        self.keys = keys
        self.values = values
        return keys, values

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The context again, for a layer that reads another layer's.

        Attention on the paged path takes it from the arena: nothing is gathered.
        """
        if not self.dense and self.keys is not None and self.values is not None:
            return self.keys, self.values
        return self._gathered()

    def _gathered(self) -> tuple[mx.array, mx.array]:
        if isinstance(self.offset, LayerOffset) and self.offset.waits:
            raise UnsupportedModelError(
                "a layer reads its context densely, which cannot be rotated later"
            )
        return self.session.gather(self.slot)

    def _rotation(self, width: int) -> Rotation | None:
        count = 1 + self._has_new
        self._has_new = False
        if isinstance(self.offset, LayerOffset):
            return self.offset.take(count, width)
        return None

    @property
    def start_position(self) -> int:
        """The first position in the gathered context of a lone row, of chunked layers."""
        if self.geometry.rows != 1:
            raise UnsupportedModelError("layers in chunks take a row at a time")
        return int(self.geometry.groups[self.slot.group].first_positions[0])

    def maybe_trim_front(self) -> None:
        """Chunked layers ask for it: blocks behind the chunk are freed elsewhere."""

    def make_mask(
        self,
        query_len: int,
        return_array: bool = False,
        window_size: int | None = None,
    ) -> Any:
        """The `mask` that the model hands on: an array only where the model reads it.

        Raises `UnsupportedModelError` for a window smaller than the cache's.
        """
        self._check_window(window_size)
        if query_len == 1 and not (self.dense or return_array):
            return None
        if self.latent:
            return None
        geometry = self.geometry
        group = self.slot.group
        view = geometry.groups[group]
        width = view.tables.shape[1] * BLOCK_TOKENS
        if geometry.rows == 1:  # a lone row is gathered to its exact length
            width = int(geometry.context_lens[0] - view.first_positions[0])
        if return_array:
            return self._visible(width)
        if not self.dense:
            return "causal"  # of several queries: one query needs no mask
        if geometry.rows > 1:
            return self._visible(width)
        if query_len > 1:
            return chunk_mask(geometry, group, width)
        if view.window is not None and width > view.window:
            return self._visible(width)
        return None

    def _check_window(self, window: int | None) -> None:
        if window is None:
            return
        if self.window is None or window < self.window:
            raise UnsupportedModelError(
                f"a layer asks for a window of {window} that its cache does not declare"
            )

    def _visible(self, width: int) -> mx.array:
        """[rows, 1, query_len, width]: True where a query may see a key."""
        visible = visible_keys(self.geometry, self.slot.group, width)
        return mx.array(visible[:, None])

    def attend(
        self,
        queries: mx.array,
        call: AttentionCall,
        mask: mx.array | str | None,
    ) -> mx.array:
        """Attention over the layer's context.

        A mask array is the model's own, and is obeyed. With latents it is the rotated
        part of the queries (see `update_and_fetch`).
        """
        if self.latent and isinstance(mask, mx.array):
            rotation = self._rotation(mask.shape[3])
            rotated = dataclasses.replace(call, rotation=rotation, rotated=mask)
            return self.session.decode(self.slot, queries, rotated)
        if isinstance(mask, mx.array):
            keys, values = self._gathered()
            return dense_attention(queries, keys, values, call, mask)
        if queries.shape[2] > 1:
            return self.session.prefill(self.slot, queries, call)
        rotation = self._rotation(queries.shape[3])
        rotated = dataclasses.replace(call, rotation=rotation)
        return self.session.decode(self.slot, queries, rotated)


def make_caches(
    layout: KVLayout,
    backend: KVBackend,
    geometry: CallGeometry,
    *,
    dense: bool,
    by_row: bool = False,
    state: Arrays = (),
    depths: Depths | None = None,
) -> list[Any]:
    """The caches of one model call, in the order of the model's layers.

    With `by_row` each row is attended by itself. `state` is what the recurrent layers
    begin with; it is empty at the beginning of a sequence. `depths` are the rows' places in
    their sequences, where they have several.
    """
    session = backend.begin(geometry, by_row=by_row)
    return session_caches(
        layout,
        session,
        geometry,
        dense=dense,
        offset=first_offset(geometry),
        state=state,
        depths=depths,
    )


def first_offset(geometry: CallGeometry) -> int | mx.array:
    """The position of the first new token, as `PagedCache` takes it."""
    if geometry.rows == 1:
        return int(geometry.positions[0])
    return mx.array(geometry.positions)


def session_caches(
    layout: KVLayout,
    session: CallSession,
    geometry: CallGeometry,
    *,
    dense: bool,
    offset: int | mx.array | StepOffset,
    state: Arrays = (),
    depths: Depths | None = None,
) -> list[Any]:
    """The caches over a session that exists already.

    With a `StepOffset` rotations wait for attention.
    """

    def paged_cache(slot: LayerSlot) -> PagedCache:
        return PagedCache(
            slot,
            session,
            geometry,
            dense=dense,
            offset=_layer_offset(offset),
            window=layout.groups[slot.group].window,
            latent=layout.groups[slot.group].latent,
        )

    leaves: list[Any] = []
    for slot in layout.slots:
        if slot is None:
            leaves.append(None)
        elif isinstance(slot, StateSlot):
            leaves.append(state_cache(slot, state, depths))
        else:
            leaves.append(paged_cache(slot))
    return _nested(leaves, layout.nesting)


def _layer_offset(
    offset: int | mx.array | StepOffset,
) -> int | mx.array | LayerOffset:
    """Rotations are noted layer by layer, so each layer gets an offset of its own."""
    if isinstance(offset, StepOffset):
        return LayerOffset(offset)
    return offset


def state_after(layout: KVLayout, caches: Sequence[Any]) -> Arrays:
    """What the recurrent layers keep after a call with these caches, rows first."""
    nesting = layout.nesting or (0,) * len(caches)
    leaves: list[Any] = []
    for cache, count in zip(caches, nesting, strict=True):
        if count:
            leaves.extend(cache.caches)
        else:
            leaves.append(cache)
    arrays: list[mx.array] = []
    for slot, cache in zip(layout.slots, leaves, strict=True):
        if isinstance(slot, StateSlot):
            arrays.extend(cache.cache)
    return tuple(arrays)


def is_of_engine(cache: object) -> bool:
    """True for a recurrent layer's cache that was made here."""
    return getattr(cache, _ENGINE_MARK, False) is True


def state_cache(slot: StateSlot, state: Arrays, depths: Depths | None = None) -> Any:
    """mlx-lm's cache of a recurrent layer, with its part of `state`.

    With `depths` the layer takes the rows in order (see `in_order`).
    """
    from mlx_lm.models.cache import ArraysCache

    cache = ArraysCache(slot.count)
    if depths is None:
        setattr(cache, _ENGINE_MARK, True)
    else:
        cache.depths = depths
    if state:
        cache.cache = list(state[slot.first : slot.first + slot.count])
    return cache


def _nested(leaves: list[Any], nesting: Sequence[int]) -> list[Any]:
    if not any(nesting):
        return leaves
    from mlx_lm.models.cache import CacheList

    remaining = iter(leaves)
    caches = []
    for count in nesting:
        if count:
            caches.append(CacheList(*itertools.islice(remaining, count)))
        else:
            caches.append(next(remaining))
    return caches


def install(model: nn.Module) -> bool:
    """Route the attention of every layer of `model` through the seam.

    Safe to call again. Returns True if all layers can take the paged path: each
    attention class calls `scaled_dot_product_attention` itself, or has a stand-in that
    attends. Returns False if one does its own arithmetic and needs dense arrays.
    """
    all_paged = True
    for cls in _attention_classes(model):
        module = sys.modules[cls.__module__]
        attention = getattr(module, ATTENTION_NAME, None)
        if not _mentions(cls.__call__, ATTENTION_NAME):
            attention = None
        is_capped = _mentions(cls.__call__, CAP_NAME)
        if attention is None and not is_capped:
            all_paged = False
        if is_capped:
            install_softcap(cls, _attends)
        if attention is not None and not hasattr(attention, "original"):
            setattr(module, ATTENTION_NAME, _routed(attention))
    return all_paged


def _attention_classes(model: nn.Module) -> set[type]:
    """Classes in the model whose `__call__` writes to a cache."""
    classes = {type(module) for module in model.modules()}
    return {cls for cls in classes if _mentions(cls.__call__, "update_and_fetch")}


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
