"""Finds out what a model keeps: one short plain forward through mlx-lm's own caches, then a look inside them.

The shapes come from the arrays themselves, so that no configuration field has to be trusted.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.seam import cache_kinds
from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.layout import KVLayout, LayerSlot, StateSlot

_KINDS = ("KVCache", "RotatingKVCache", "ArraysCache")
# What a call of a model whose sizes do not go together can end in.
_CALL_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
)
# A model without attention counts its tokens in blocks all the same: prefixes and admission are worked out in them. The
# shape has kernels, so that on a device a step of it is in flight, too.
_COUNTER = KVShape(1, 1, 16, 16, None, mx.float32)


def plain_caches(model: nn.Module) -> list[Any]:
    """mlx-lm's own caches for this model."""
    from mlx_lm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    return caches


def probe_layout(model: nn.Module, *, quantized: bool = False) -> KVLayout:
    """Group the model's layers by KV shape and window; with `quantized` the arenas hold int8.

    Raises `UnsupportedModelError` for cache kinds that are neither attention's nor a recurrent layer's arrays, and
    `ModelFileError` for sizes that do not go together.
    """
    caches = plain_caches(model)
    nesting = tuple(
        len(cache.caches) if _kind(cache) == "CacheList" else 0 for cache in caches
    )
    leaves = [
        leaf
        for cache, count in zip(caches, nesting, strict=True)
        for leaf in (cache.caches if count else [cache])
    ]
    unknown = [leaf for leaf in leaves if _kind(leaf) not in _KINDS]
    if unknown:
        raise UnsupportedModelError(
            f"this model keeps {', '.join(cache_kinds(unknown))} state, which is not supported yet; "
            "choose a model with full or sliding-window attention, or with recurrent layers"
        )
    try:
        model(
            mx.zeros((1, 1), dtype=mx.int32), cache=caches
        )  # never evaluated: shapes are known without
    except _CALL_ERRORS as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"a model of this configuration cannot be called: {type(error).__name__}: {detail}"
        ) from error
    shapes = [
        None if _kind(leaf) == "ArraysCache" else _probe_layer(leaf) for leaf in leaves
    ]
    kinds = list(dict.fromkeys(shape for shape in shapes if shape is not None))
    slots: list[LayerSlot | StateSlot | None] = []
    counts, num_arrays, state_bytes = [0] * len(kinds), 0, 0
    for leaf, shape in zip(leaves, shapes, strict=True):
        if _kind(leaf) == "ArraysCache":
            slots.append(StateSlot(num_arrays, len(leaf.cache)))
            num_arrays += len(leaf.cache)
            state_bytes += leaf.nbytes
            continue
        if shape is None:
            slots.append(None)
            continue
        group = kinds.index(shape)
        slots.append(LayerSlot(group, counts[group]))
        counts[group] += 1
    groups = tuple(
        KVShape(count, heads, key_dim, value_dim, window, dtype, quantized)
        for count, (heads, key_dim, value_dim, window, dtype) in zip(
            counts, kinds, strict=True
        )
    )
    return KVLayout(
        groups or (_COUNTER,),
        tuple(slots),
        nesting if any(nesting) else (),
        state_bytes,
    )


def _kind(cache: Any) -> str:
    return type(cache).__name__


def _probe_layer(cache: Any) -> tuple[int, int, int, int | None, mx.Dtype] | None:
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
