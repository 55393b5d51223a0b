"""Windows of attention that configurations state and definitions do not read.

mlx-lm's definitions of these families attend to the whole context in every layer. Their
layers get a mask and a cache with the window here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mlx import nn

from rvllm_local.models.replaced_calls import replace_call

_SLIDING = "sliding_attention"
# Which layers have the window, where `layer_types` does not say so.
_EVERY, _EVEN, _UPPER = "every", "even", "upper"
_FAMILIES = {
    "gemma2": _EVEN,
    "mixtral": _EVERY,
    "phi3": _EVERY,
    "qwen2": _UPPER,
    "qwen2_moe": _UPPER,
    "qwen3": _UPPER,
    "qwen3_moe": _UPPER,
    "starcoder2": _EVERY,
}
# Definitions that apply masks by hand.
_TAKES_ARRAYS = frozenset({"gemma2"})


def layer_windows(config: Mapping[str, Any]) -> list[int | None]:
    """The window of each layer, in tokens; empty if no layer gets one here."""
    rule = _FAMILIES.get(str(config.get("model_type")))
    window = config.get("sliding_window")
    layers = config.get("num_hidden_layers")
    longest = config.get("max_position_embeddings")
    if rule is None or type(window) is not int or type(layers) is not int:
        return []
    if window <= 0 or (type(longest) is int and window >= longest):
        return []
    kinds = config.get("layer_types")
    windows: list[int | None] = []
    for index in range(layers):
        if isinstance(kinds, list):
            has_window = index < len(kinds) and kinds[index] == _SLIDING
        else:
            has_window = _has_window(rule, index, config)
        windows.append(window if has_window else None)
    if any(windows):
        return windows
    return []


def _has_window(rule: str, index: int, config: Mapping[str, Any]) -> bool:
    if rule == _EVEN:
        return index % 2 == 0
    if rule == _UPPER:
        first = config.get("max_window_layers")
        is_used = bool(config.get("use_sliding_window"))
        return is_used and type(first) is int and index >= first
    return True


def put_windows(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Let layers attend to their window alone, and keep no more."""
    windows = layer_windows(config)
    if not windows:
        return
    takes_arrays = config.get("model_type") in _TAKES_ARRAYS
    for layer, window in zip(model.layers, windows, strict=True):
        replace_call(layer, _masked_call(type(layer), window, takes_arrays))
    # An attribute of the model, where mlx-lm looks for it.
    object.__setattr__(model, "make_cache", lambda: _caches(windows))


def _masked_call(kind: type, window: int | None, takes_arrays: bool) -> Any:
    """A layer's call under a mask of its own: the model makes one for all layers."""
    module = sys.modules[kind.__module__]

    def call(layer: Any, x: Any, mask: Any = None, cache: Any = None) -> Any:
        mask = module.create_attention_mask(
            x, cache, window_size=window, return_array=takes_arrays
        )
        return kind.__call__(layer, x, mask, cache)

    return call


def _caches(windows: list[int | None]) -> list[Any]:
    """mlx-lm's caches of the layers."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    caches: list[Any] = []
    for window in windows:
        if window is None:
            caches.append(KVCache())
        else:
            caches.append(RotatingKVCache(max_size=window))
    return caches
