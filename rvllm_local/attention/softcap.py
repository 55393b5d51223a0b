"""Attention that caps its logits: mlx-lm's gemma2 and gear compute it by hand.

Their layers' calls are replaced here. The stand-in projects and rotates as they do, and
leaves attention to the layer's cache, where that attends. Any other cache goes to
mlx-lm's own call, untouched. A layer that computes anything else besides fails in the
load-time self-check.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.stand_in import project_heads

CAP_NAME = "attn_logit_softcapping"  # what a layer that caps its logits calls the cap
_MASK_NAME = "create_attention_mask"


def install_softcap(attention: type[nn.Module], attends: Callable[[Any], bool]) -> None:
    """Replace the `__call__` of this class by the stand-in; safe to call again.

    `attends` says whether a cache has an `attend` that is to be used.
    """
    if hasattr(attention.__call__, "original"):
        return
    attention.__call__ = _capped_call(attention.__call__, attends)
    module = sys.modules[attention.__module__]
    create_mask = getattr(module, _MASK_NAME, None)
    if create_mask is not None:
        setattr(module, _MASK_NAME, _mask_function(create_mask, attends))


def _capped_call(
    original: Callable[..., mx.array],
    attends: Callable[[Any], bool],
) -> Callable[..., mx.array]:
    @functools.wraps(original)
    def call(
        layer: Any,
        x: mx.array,
        mask: Any = None,
        cache: Any = None,
    ) -> mx.array:
        softcap = getattr(layer, CAP_NAME)
        if not softcap or not attends(cache):
            return original(layer, x, mask=mask, cache=cache)
        queries = _heads(layer, "q", x)
        keys = _heads(layer, "k", x)
        values = _heads(layer, "v", x)
        queries = layer.rope(queries, offset=cache.offset)
        keys = layer.rope(keys, offset=cache.offset)
        keys, values = cache.update_and_fetch(keys, values)
        capped = AttentionCall(layer.scale, softcap=float(softcap))
        attended = cache.attend(queries, capped, mask)
        return project_heads(layer, attended)

    call.original = original  # type: ignore[attr-defined]
    return call


def _heads(
    layer: Any,
    part: str,
    x: mx.array,
) -> mx.array:
    """The queries, keys or values: `[rows, heads, tokens, head_dim]`.

    They are normed if the layer has a norm for them.
    """
    rows, tokens = x.shape[:2]
    project = layer[f"{part}_proj"]
    heads: mx.array = project(x).reshape(rows, tokens, -1, layer.head_dim)
    norm = layer.get(f"{part}_norm")
    if norm is not None:
        heads = norm(heads)
    return heads.transpose(0, 2, 1, 3)


def _mask_function(
    original: Callable[..., Any],
    attends: Callable[[Any], bool],
) -> Callable[..., Any]:
    """Make masks that are no arrays where the cache attends.

    Models ask for arrays since they apply masks by hand; there nobody applies them.
    """

    @functools.wraps(original)
    def create_attention_mask(
        h: mx.array,
        cache: Any = None,
        window_size: int | None = None,
        return_array: bool = False,
    ) -> Any:
        if attends(cache):
            return_array = False
        return original(
            h,
            cache,
            window_size=window_size,
            return_array=return_array,
        )

    return create_attention_mask
