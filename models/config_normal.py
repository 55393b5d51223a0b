"""One form for configurations of all writers, before a definition reads one.

A definition takes a default for each key that it does not find. So a key under another
name is a silent wrong number; this is the one place that gives keys the names that
definitions read, and refuses what contradicts itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvllm_local.models.family_fields import plain_numbers, put_family_fields
from rvllm_local.models.heads import TIED, put_tied
from rvllm_local.models.layer_pattern import put_full_interval
from rvllm_local.models.longrope import with_factors_for
from rvllm_local.models.rotation import with_both_spellings

# Parts of a configuration that describe a language model of their own.
_PARTS = ("text_config", "language_config", "llm_config")
_SLIDING = "sliding_attention"
# Definitions that know windowed layers by a count: every n-th layer is full.
_COUNTED_PATTERN = frozenset({"gemma3_text", "gemma3", "cohere2"})
# Definitions that know them by letters: L for a windowed layer, G for a full one.
_LETTER_PATTERN = frozenset({"exaone4"})
# Sizes of a family that have another name with newer writers.
_EXPERTS = {"num_experts": "num_local_experts"}
_SAME_SIZE = {
    "mixtral": {"num_local_experts": "num_experts"},
    "lfm2": {"block_dim": "hidden_size", "block_ff_dim": "intermediate_size"},
}
# Families whose heads of keys are those of the queries, where a config is silent.
_KV_HEADS = "num_key_value_heads"
_AS_MANY_KV_HEADS = frozenset({"granite", "phi"})
# Families whose layers all have the window, where the config names no layers.
_ALL_WINDOWED = frozenset({"mistral"})


def normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration under the names that definitions read.

    Normalising twice changes nothing. Raises `ModelFileError` for contradictions and
    `UnsupportedModelError` for what the definition cannot do.
    """
    model_type = str(config.get("model_type"))
    config = plain_numbers(config)
    normal = _normalised_part(config, model_type)
    for name in _PARTS:
        part = config.get(name)
        if not isinstance(part, Mapping):
            continue
        part_type = part.get("model_type") or model_type
        normal[name] = _normalised_part(_with_shared(part, config), str(part_type))
        if normal.get("vocab_size") is None and "vocab_size" in part:
            normal["vocab_size"] = part["vocab_size"]
    return normal


def _with_shared(part: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A part with what is said once for the whole model.

    transformers 5 asks the whole whether the head is the embedding; older releases, and
    the definitions, ask the part.
    """
    shared = dict(part)
    is_tied = whole.get(TIED)
    is_new = str(whole.get("transformers_version", "")).startswith("5.")
    if isinstance(is_tied, bool) and (is_new or part.get(TIED) is None):
        shared[TIED] = is_tied
    return shared


def _normalised_part(part: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    part = with_factors_for(part, None)
    normal = with_both_spellings(part, model_type)
    _put_dtype(normal)
    _put_layers(normal, model_type)
    _put_sizes(normal, model_type)
    put_tied(normal, model_type)
    put_family_fields(normal, model_type)
    return normal


def _put_dtype(normal: dict[str, Any]) -> None:
    """The weights' type under both names, without a library's prefix."""
    for name in ("dtype", "torch_dtype"):
        value = normal.get(name)
        if isinstance(value, str):
            normal[name] = value.removeprefix("torch.")
    value = normal.get("dtype") or normal.get("torch_dtype")
    if value is not None:
        normal["dtype"] = value
        normal["torch_dtype"] = value


def _put_layers(normal: dict[str, Any], model_type: str) -> None:
    """Which layers have a window, as the definition wants to be told."""
    layer_types = normal.get("layer_types")
    if not isinstance(layer_types, list):
        _name_windowed_layers(normal, model_type)
        return
    if model_type in _COUNTED_PATTERN:
        put_full_interval(
            normal, "sliding_window_pattern", layer_types, _SLIDING, model_type
        )
    elif model_type in _LETTER_PATTERN and normal.get("sliding_window"):
        normal["sliding_window_pattern"] = _letter_pattern(layer_types)


def _letter_pattern(layer_types: list[Any]) -> str:
    pattern = ""
    for kind in layer_types:
        if kind == _SLIDING:
            pattern += "L"
        else:
            pattern += "G"
    return pattern


def _name_windowed_layers(normal: dict[str, Any], model_type: str) -> None:
    layers = normal.get("num_hidden_layers")
    window = normal.get("sliding_window")
    if model_type in _ALL_WINDOWED and window and type(layers) is int:
        normal["layer_types"] = [_SLIDING] * layers
    pattern = normal.get("sliding_window_pattern")
    if model_type in _LETTER_PATTERN and type(pattern) is int:
        normal["sliding_window_pattern"] = "L" * (pattern - 1) + "G"


def _put_sizes(normal: dict[str, Any], model_type: str) -> None:
    """Sizes that newer writers leave out, since they follow from others."""
    same_sizes = _SAME_SIZE.get(model_type, _EXPERTS)
    for name, other in same_sizes.items():
        size = normal.get(other)
        if normal.get(name) is None and size is not None:
            normal[name] = size
    _put_kv_heads(normal, model_type)


def _put_kv_heads(normal: dict[str, Any], model_type: str) -> None:
    """Null means as many heads of keys as of queries."""
    heads = normal.get("num_attention_heads")
    is_null = _KV_HEADS in normal and normal[_KV_HEADS] is None
    is_absent = _KV_HEADS not in normal and model_type in _AS_MANY_KV_HEADS
    if heads is not None and (is_null or is_absent):
        normal[_KV_HEADS] = heads
