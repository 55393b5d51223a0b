"""Gemma 4's keys: sizes that differ between layers with a window and full ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.gguf.keys import Keys

Config = dict[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_NEVER = 1e29  # a factor beyond which nothing is rotated


def gemma4_config(keys: Keys, config: Config) -> Config:
    """The whole configuration.

    Raises `UnsupportedModelError` for layers that the definition cannot tell apart.
    """
    layers: int = config["num_hidden_layers"]
    layer_types = _layer_types(keys, layers)
    num_shared = keys.whole("attention.shared_kv_layers", 0)
    head_dim = config["head_dim"]
    head_dim_in_window = keys.integer("attention.key_length_swa", head_dim)
    per_layer = keys.whole("embedding_length_per_layer_input", 0)
    settings = {
        **config,
        **_widths(keys, layers, layers - num_shared),
        **_heads(keys, layer_types[: layers - num_shared]),
        **_experts(keys),
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "global_head_dim": head_dim,
        "head_dim": head_dim_in_window,
        "hidden_size_per_layer_input": per_layer,
        "layer_types": layer_types,
        "num_kv_shared_layers": num_shared,
        "rope_parameters": _rotations(keys, head_dim, head_dim_in_window),
        "sliding_window": keys.integer("attention.sliding_window"),
    }
    if per_layer:
        rows = keys.file.info("per_layer_token_embd.weight").shape[0]
        settings["vocab_size_per_layer_input"] = rows
    settings.pop("rope_theta")
    return settings


def _experts(keys: Keys) -> Config:
    if not keys.get("expert_count"):
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "num_experts": keys.integer("expert_count"),
        "top_k_experts": keys.integer("expert_used_count"),
    }


def _layer_types(keys: Keys, layers: int) -> list[str]:
    """Which layers have a window, by a value for each."""
    pattern = keys.get("attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) < layers:
        raise UnsupportedModelError(
            f"{keys.path}: key 'attention.sliding_window_pattern' is {pattern!r:.60}, "
            f"and a value for each of {layers} layers is needed"
        )
    return [_SLIDING if value else _FULL for value in pattern[:layers]]


def _widths(keys: Keys, layers: int, num_own: int) -> Config:
    """The width of the layers' MLPs, which may double where keys are shared."""
    widths = keys.get("feed_forward_length")
    if not isinstance(widths, list):
        return {"use_double_wide_mlp": False}
    narrow = widths[0]
    doubled = [narrow] * num_own + [2 * narrow] * (layers - num_own)
    is_doubled = widths[:layers] == doubled
    if not is_doubled and widths[:layers] != [narrow] * layers:
        raise UnsupportedModelError(
            f"{keys.path}: key 'feed_forward_length' is {widths!r:.60}, and only layers "
            "that share keys may be twice as wide"
        )
    has_shared = num_own < layers
    return {
        "intermediate_size": narrow,
        "use_double_wide_mlp": is_doubled and has_shared,
    }


def _heads(keys: Keys, own_types: list[str]) -> Config:
    """Heads of keys in layers with a window and in full ones, whose values may be keys."""
    counts = keys.get("attention.head_count_kv")
    by_type: dict[str, set[int]] = {_FULL: set(), _SLIDING: set()}
    are_values_keys = set()
    for layer, kind in enumerate(own_types):
        count = counts[layer] if isinstance(counts, list) else counts
        by_type[kind].add(int(count))
        if kind == _FULL:
            has_values = f"blk.{layer}.attn_v.weight" in keys.file.tensors
            are_values_keys.add(not has_values)
    full, in_window = by_type[_FULL], by_type[_SLIDING]
    has_one_kind = len(full) <= 1 and len(in_window) == 1 and len(are_values_keys) <= 1
    is_shared = True in are_values_keys
    if not has_one_kind or (full and full != in_window and not is_shared):
        raise UnsupportedModelError(
            f"{keys.path}: key 'attention.head_count_kv' is {counts!r:.60}: layers that "
            "differ in this way are not supported in a GGUF file; use safetensors"
        )
    (heads,) = in_window
    return {
        "attention_k_eq_v": is_shared,
        "num_global_key_value_heads": min(full) if is_shared else None,
        "num_key_value_heads": heads,
    }


def _rotations(keys: Keys, head_dim: int, head_dim_in_window: int) -> Config:
    """Full layers rotate the share of pairs whose factor is 1."""
    share = 1.0
    if "rope_freqs.weight" in keys.file.tensors:
        factors = keys.file.read("rope_freqs.weight")
        is_rotated = factors == 1.0
        num_rotated = int(is_rotated.sum())
        is_known = (is_rotated[:num_rotated].all()) and np.all(
            factors[num_rotated:] > _NEVER
        )
        if factors.shape != (head_dim // 2,) or not is_known:
            raise UnsupportedModelError(
                f"{keys.path}: the RoPE factors are not those of Gemma 4; use safetensors"
            )
        share = 2 * num_rotated / head_dim
    in_window = keys.integer("rope.dimension_count_swa", head_dim_in_window)
    if in_window != head_dim_in_window:
        raise UnsupportedModelError(
            f"{keys.path}: RoPE over {in_window} of {head_dim_in_window} dimensions is "
            "not supported"
        )
    return {
        _FULL: {
            "rope_type": "proportional",
            "rope_theta": keys.positive("rope.freq_base", 1e6),
            "partial_rotary_factor": share,
        },
        _SLIDING: {
            "rope_type": "default",
            "rope_theta": keys.positive("rope.freq_base_swa", 1e4),
            "partial_rotary_factor": 1.0,
        },
    }
