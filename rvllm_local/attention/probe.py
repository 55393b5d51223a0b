"""Finds out what a model keeps: one short forward through mlx-lm's own caches.

The shapes come from the arrays themselves, so that no configuration field has to be
trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.absorbed import expanded_sizes
from rvllm_local.attention.latent import latent_sizes
from rvllm_local.attention.seam import cache_kinds
from rvllm_local.errors import (
    DEFINITION_ERRORS,
    ModelFileError,
    UnsupportedModelError,
)
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot, StateSlot
from rvllm_local.memory.state_record import StateForm, form_of

# A chunk's queries see no key before it, so that a chunked cache is one with a window,
# in which the model hides more.
_KINDS = ("KVCache", "RotatingKVCache", "ChunkedKVCache", "ArraysCache")
# A model without attention counts its tokens in blocks all the same: prefixes and
# admission are worked out in them. The shape has kernels, so that on a device a step of
# it is in flight, too.
_COUNTER = KVShape(
    num_layers=1,
    kv_heads=1,
    key_dim=16,
    value_dim=16,
    window=None,
    dtype=mx.float32,
)


@dataclass(frozen=True, slots=True)
class _LayerShape:
    """What one layer keeps of a token, and for how many tokens."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    dtype: mx.Dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, and the sizes of keys and values."""
        return self.kv_heads, self.key_dim, self.value_dim


def plain_caches(model: nn.Module) -> list[Any]:
    """mlx-lm's own caches for this model."""
    from mlx_lm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    return caches


def probe_layout(model: nn.Module, *, quantized: bool = False) -> KVLayout:
    """Group the model's layers by KV shape and window.

    With `quantized` the arenas hold int8. Raises `UnsupportedModelError` for cache
    kinds that are neither attention's nor a recurrent layer's arrays, and
    `ModelFileError` for sizes that do not go together.
    """
    caches = plain_caches(model)
    leaves, nesting = _leaves_of(caches)
    _check_kinds(leaves)
    _fill(model, caches)
    if not any(nesting):
        nesting = []
    return _layout_of(model, leaves, tuple(nesting), quantized)


def probe_state_form(model: nn.Module) -> StateForm:
    """The form of what the model's recurrent layers keep at the end of a block."""
    caches = plain_caches(model)
    _fill(model, caches, num_tokens=BLOCK_TOKENS)
    arrays: list[mx.array | None] = []
    for leaf in _leaves_of(caches)[0]:
        if _kind(leaf) == "ArraysCache":
            arrays.extend(leaf.cache)
    return form_of(tuple(arrays))


def _leaves_of(caches: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The caches of all layers, and how many each layer's list has.

    The number is 0 for a layer whose cache stands in no list.
    """
    leaves: list[Any] = []
    nesting: list[int] = []
    for cache in caches:
        if _kind(cache) == "CacheList":
            leaves.extend(cache.caches)
            nesting.append(len(cache.caches))
        else:
            leaves.append(cache)
            nesting.append(0)
    return leaves, nesting


def _check_kinds(leaves: Sequence[Any]) -> None:
    unknown = [leaf for leaf in leaves if _kind(leaf) not in _KINDS]
    if unknown:
        kinds = ", ".join(cache_kinds(unknown))
        if kinds == "LayerCache":
            raise UnsupportedModelError(
                "this model keeps one compressed row for several tokens (LayerCache), "
                "and a block holds a row for each: it takes arenas of another grain, a "
                "state for the tokens that wait, and sparse attention in the back ends"
            )
        raise UnsupportedModelError(
            f"this model keeps {kinds} state, which is not supported yet; choose a model "
            "with full or sliding-window attention, or with recurrent layers"
        )


def _fill(model: nn.Module, caches: Sequence[Any], num_tokens: int = 1) -> None:
    """Call the model. Nothing is evaluated: shapes are known without."""
    tokens = mx.zeros((1, num_tokens), dtype=mx.int32)
    try:
        model(tokens, cache=caches)
    except DEFINITION_ERRORS as error:
        message = " ".join(str(error).split())
        raise ModelFileError(
            "a model of this configuration cannot be called: "
            f"{type(error).__name__}: {message[:200]}"
        ) from error


def _layout_of(
    model: nn.Module,
    leaves: Sequence[Any],
    nesting: tuple[int, ...],
    quantized: bool,
) -> KVLayout:
    """The layout of filled caches: layers of one shape and window share a group."""
    latents = latent_sizes(model)
    expanded = expanded_sizes(model)
    # Layers of each shape. The shapes come in the order of the groups.
    counts: dict[_LayerShape, int] = {}
    slots: list[LayerSlot | StateSlot | None] = []
    num_arrays = 0
    state_bytes = 0
    for leaf in leaves:
        if _kind(leaf) == "ArraysCache":
            count = len(leaf.cache)
            slots.append(StateSlot(num_arrays, count))
            num_arrays += count
            state_bytes += leaf.nbytes
            continue
        shape = _probe_layer(leaf)
        if shape is None:
            slots.append(None)
            continue
        if shape.sizes in expanded:
            shape = _with_sizes(shape, expanded[shape.sizes])
        layer = counts.setdefault(shape, 0)
        group = list(counts).index(shape)
        slots.append(LayerSlot(group, layer))
        counts[shape] = layer + 1
    groups = []
    for shape, layers in counts.items():
        is_latent = shape.sizes in latents
        groups.append(_kv_shape(shape, layers, quantized, is_latent))
    return KVLayout(
        tuple(groups) or (_COUNTER,),
        tuple(slots),
        nesting,
        state_bytes,
    )


def _kind(cache: Any) -> str:
    return type(cache).__name__


def _probe_layer(cache: Any) -> _LayerShape | None:
    if cache.keys is None:  # the layer reads another layer's KV
        return None
    window = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    if getattr(cache, "keep", 0):
        raise UnsupportedModelError(
            "a rotating cache that keeps its first tokens is not supported"
        )
    _, kv_heads, _, key_dim = cache.keys.shape
    return _LayerShape(
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=cache.values.shape[3],
        window=window,
        dtype=cache.keys.dtype,
    )


def _with_sizes(shape: _LayerShape, sizes: tuple[int, int, int]) -> _LayerShape:
    heads, key_dim, value_dim = sizes
    return _LayerShape(heads, key_dim, value_dim, shape.window, shape.dtype)


def _kv_shape(
    shape: _LayerShape, layers: int, quantized: bool, is_latent: bool
) -> KVShape:
    return KVShape(
        num_layers=layers,
        kv_heads=shape.kv_heads,
        key_dim=shape.key_dim,
        value_dim=shape.value_dim,
        window=shape.window,
        dtype=shape.dtype,
        quantized=quantized,
        latent=is_latent,
    )
