"""Refuses settings that change numbers and that the definition does not read.

A definition computes what its family's first models computed. A setting of a later one
that it does not know would be a silent wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from rvllm_local.errors import UnsupportedModelError

# Settings that change what a layer computes, with the values that change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "alibi": (None, False),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None, 0),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None, 0),
    "logits_scaling": (None, 1),
    "qk_layernorm": (None, False),
    "residual_multiplier": (None, 1),
    "scale_depth": (None,),
    "scale_emb": (None, 1),
}
# Settings that a definition has in its code, with their values.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "nanochat": {"final_logit_softcapping": 15.0},
}
_CHUNKED = "chunked_attention"
_HAS_CHUNKS = frozenset({"llama4", "llama4_text"})
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# Definitions that compute silu somewhere, and something else where this is meant.
_OWN_ACTIVATION = frozenset({"muse_spark", "nemotron_h", "openelm"})
_SILU = frozenset({"silu", "swish", "swiglu"})


def check_unread_fields(family: ModuleType, config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` for a setting that would be dropped.

    The error names the setting, its value and what the definition does instead.
    """
    arguments = family.ModelArgs
    if not is_dataclass(arguments):
        return
    names = {field.name for field in fields(arguments)}
    if "text_config" in names:
        return  # other definitions read the parts
    definition = family.__name__.rpartition(".")[2]
    fixed = _FIXED.get(definition, {})
    for name, neutral in _NEUTRAL.items():
        value = config.get(name)
        if name in fixed:
            _check_fixed(name, value, fixed[name], definition)
        elif name not in names and value not in neutral:
            raise UnsupportedModelError(
                f"the config's {name} is {value!r:.40}, and mlx-lm's definition of "
                f"{definition} does not know it; take a model without it"
            )
    _check_layer_types(config, definition)
    for name, value in _activations(config):
        computes_silu = hasattr(family, "swiglu") and definition not in _OWN_ACTIVATION
        if name in names or not computes_silu:
            continue
        if value not in _SILU:
            raise UnsupportedModelError(
                f"the config's {name} is {value!r:.40}, and mlx-lm's definition of "
                f"{definition} computes silu; take a model with that"
            )


def _check_layer_types(config: Mapping[str, Any], definition: str) -> None:
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and _CHUNKED in kinds and definition not in _HAS_CHUNKS:
        raise UnsupportedModelError(
            f"the config's layer_types have {_CHUNKED!r}, and mlx-lm's definition of "
            f"{definition} does not know it; take a model without it"
        )


def _check_fixed(name: str, value: Any, fixed: Any, definition: str) -> None:
    if value is not None and value != fixed:
        raise UnsupportedModelError(
            f"the config's {name} is {value!r:.40}, and mlx-lm's definition of "
            f"{definition} computes {fixed}; take a model with that"
        )


def _activations(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _ACTIVATIONS:
        value = config.get(name)
        if isinstance(value, str):
            yield name, value
