"""Finds out what a model keeps: one short forward through mlx-lm's own caches.

The shapes come from the arrays themselves, so that no configuration field has to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.seam import cache_kinds
from rvllm_local.errors import (
    DEFINITION_ERRORS,
    ModelFileError,
    UnsupportedModelError,
)
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.layout import KVLayout, LayerSlot, StateSlot

# KV heads, key size, value size, window and type of one layer.
_LayerShape = tuple[int, int, int, int | None, mx.Dtype]
_KINDS = ("KVCache", "RotatingKVCache", "ArraysCache")
# A model without attention counts its tokens in blocks all the same: prefixes and
# admission are worked out in them. The shape has kernels, so that on a device a step of
# it is in flight, too.
_COUNTER = KVShape(1, 1, 16, 16, None, mx.float32)


def plain_caches(model: nn.Module) -> list[Any]:
    """mlx-lm's own caches for this model."""
    from mlx_lm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    return caches


def probe_layout(model: nn.Module, *, quantized: bool = False) -> KVLayout:
    """Group the model's layers by KV shape and window.

    With `quantized` the arenas hold int8. Raises `UnsupportedModelError` for cache kinds
    that are neither attention's nor a recurrent layer's arrays, and `ModelFileError` for
    sizes that do not go together.
    """
    caches = plain_caches(model)
    nesting = tuple(_num_parts(cache) for cache in caches)
    leaves: list[Any] = []
    for cache, count in zip(caches, nesting, strict=True):
        leaves += cache.caches if count else [cache]
    unknown = [leaf for leaf in leaves if _kind(leaf) not in _KINDS]
    if unknown:
        kinds = ", ".join(cache_kinds(unknown))
        raise UnsupportedModelError(
            f"this model keeps {kinds} state, which is not supported yet; choose a model "
            "with full or sliding-window attention, or with recurrent layers"
        )
    _fill(model, caches)
    return _layout_of(leaves, nesting if any(nesting) else (), quantized)


def _num_parts(cache: Any) -> int:
    """Caches inside a list of caches; 0 for any other cache."""
    return len(cache.caches) if _kind(cache) == "CacheList" else 0


def _fill(model: nn.Module, caches: Sequence[Any]) -> None:
    """Call the model with one token. Nothing is evaluated: shapes are known without."""
    try:
        model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
    except DEFINITION_ERRORS as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelFileError(
            "a model of this configuration cannot be called: "
            f"{type(error).__name__}: {detail}"
        ) from error


def _layout_of(
    leaves: Sequence[Any], nesting: tuple[int, ...], quantized: bool
) -> KVLayout:
    """The layout of filled caches: layers of one shape and window share a group."""
    counts: dict[_LayerShape, int] = {}
    groups = _groups_of(leaves)
    slots: list[LayerSlot | StateSlot | None] = []
    num_arrays, state_bytes = 0, 0
    for leaf in leaves:
        if _kind(leaf) == "ArraysCache":
            slots.append(StateSlot(num_arrays, len(leaf.cache)))
            num_arrays += len(leaf.cache)
            state_bytes += leaf.nbytes
            continue
        shape = _probe_layer(leaf)
        if shape is None:
            slots.append(None)
            continue
        layer = counts.get(shape, 0)
        slots.append(LayerSlot(groups.index(shape), layer))
        counts[shape] = layer + 1
    shapes = tuple(_kv_shape(shape, counts[shape], quantized) for shape in groups)
    return KVLayout(shapes or (_COUNTER,), tuple(slots), nesting, state_bytes)


def _groups_of(leaves: Sequence[Any]) -> list[_LayerShape]:
    """The layers' different shapes, in the order in which they come."""
    shapes: list[_LayerShape] = []
    for leaf in leaves:
        if _kind(leaf) == "ArraysCache":
            continue
        shape = _probe_layer(leaf)
        if shape is not None and shape not in shapes:
            shapes.append(shape)
    return shapes


def _kv_shape(shape: _LayerShape, layers: int, quantized: bool) -> KVShape:
    heads, key_dim, value_dim, window, dtype = shape
    return KVShape(layers, heads, key_dim, value_dim, window, dtype, quantized)


def _kind(cache: Any) -> str:
    return type(cache).__name__


def _probe_layer(cache: Any) -> _LayerShape | None:
    if cache.keys is None:  # the layer reads another layer's KV
        return None
    window = getattr(cache, "max_size", None)
    if getattr(cache, "keep", 0):
        raise UnsupportedModelError(
            "a rotating cache that keeps its first tokens is not supported"
        )
    return (
        cache.keys.shape[1],
        cache.keys.shape[3],
        cache.values.shape[3],
        window,
        cache.keys.dtype,
    )
