"""Attention that caps its logits: mlx-lm's gemma2 and gear compute it by hand, so their layers' calls are replaced here.

The stand-in projects and rotates as they do and leaves attention to the layer's cache, where that attends; every other
cache goes to mlx-lm's own call, untouched. A layer that computes anything else besides fails in the load-time self-check.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import AttentionCall

CAP_NAME = "attn_logit_softcapping"  # what a layer that caps its logits calls the cap
_MASK_NAME = "create_attention_mask"


def install_softcap(attention: type[nn.Module], attends: Callable[[Any], bool]) -> None:
    """Put the stand-in in the place of this class's `__call__`; safe to call again.

    `attends` says whether a cache has an `attend` that is to be used.
    """
    if hasattr(attention.__call__, "original"):
        return
    attention.__call__ = _capped_call(attention.__call__, attends)
    module = sys.modules[attention.__module__]
    if hasattr(module, _MASK_NAME):
        setattr(
            module, _MASK_NAME, _mask_function(getattr(module, _MASK_NAME), attends)
        )


def _capped_call(
    original: Callable[..., mx.array], attends: Callable[[Any], bool]
) -> Callable[..., mx.array]:
    @functools.wraps(original)
    def call(layer: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        softcap = getattr(layer, CAP_NAME)
        if not softcap or not attends(cache):
            return original(layer, x, mask=mask, cache=cache)
        queries, keys, values = (_heads(layer, part, x) for part in "qkv")
        queries, keys = (
            layer.rope(queries, offset=cache.offset),
            layer.rope(keys, offset=cache.offset),
        )
        keys, values = cache.update_and_fetch(keys, values)
        attended = cache.attend(
            queries, AttentionCall(layer.scale, softcap=float(softcap)), mask
        )
        output: mx.array = layer.o_proj(
            attended.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        )
        return output

    call.original = original  # type: ignore[attr-defined]
    return call


def _heads(layer: Any, part: str, x: mx.array) -> mx.array:
    """The queries, keys or values `[rows, heads, tokens, head_dim]`, normed if the layer has a norm for them."""
    projected = layer[f"{part}_proj"](x).reshape(*x.shape[:2], -1, layer.head_dim)
    norm = layer.get(f"{part}_norm")
    heads: mx.array = (projected if norm is None else norm(projected)).transpose(
        0, 2, 1, 3
    )
    return heads


def _mask_function(
    original: Callable[..., Any], attends: Callable[[Any], bool]
) -> Callable[..., Any]:
    """Masks are asked for as arrays by models that apply them by hand; where the cache attends, nobody does."""

    @functools.wraps(original)
    def create_attention_mask(
        h: mx.array,
        cache: Any = None,
        window_size: int | None = None,
        return_array: bool = False,
    ) -> Any:
        return original(
            h,
            cache,
            window_size=window_size,
            return_array=return_array and not attends(cache),
        )

    return create_attention_mask
