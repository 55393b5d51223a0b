"""Fields that newer writers say otherwise, or leave out, for single definitions.

transformers 5 saves a model's layers under `layer_types`, sizes of single layers under
`per_layer_config`, and leaves out what follows from other fields. A definition of mlx-lm
takes a default for what it does not find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.layer_pattern import FULL, put_full_interval

Fields = dict[str, Any]

_LINEAR = "linear_attention"
# What transformers takes where a configuration is silent, and the definition wants.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "solar_open": {"first_k_dense_replace": 0},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "minimax_m2": {"shared_intermediate_size": 0},
    "lfm2": {
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    },
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "glm_moe_dsa": {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
    },
    "gemma4_text": {"num_kv_shared_layers": 0, "use_double_wide_mlp": False},
}
_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def plain_numbers(value: Any) -> Any:
    """The value with transformers' `{"__float__": "Infinity"}` as the number it is."""
    if isinstance(value, Mapping):
        name = value.get("__float__")
        if len(value) == 1 and name in _NUMBERS:
            return _NUMBERS[name]
        return {key: plain_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain_numbers(part) for part in value]
    return value


def put_family_fields(fields: Fields, model_type: str) -> None:
    """Give the fields that the definition of `model_type` reads, in place.

    Raises `ModelFileError` for contradictions and `UnsupportedModelError` for what the
    definition cannot do.
    """
    put = _FAMILIES.get(model_type)
    if put is not None:
        put(fields, model_type)
    for name, value in _DEFAULTS.get(model_type, {}).items():
        if fields.get(name) is None:
            fields[name] = value


def _put_linear_interval(fields: Fields, model_type: str) -> None:
    """Every n-th layer is a full one: the definition knows the layers by n alone."""
    layer_types = fields.get("layer_types")
    if not isinstance(layer_types, list) or FULL not in layer_types:
        return
    put_full_interval(
        fields, "full_attention_interval", layer_types, _LINEAR, model_type
    )


def _put_gemma4(fields: Fields, model_type: str) -> None:
    if fields.get("use_bidirectional_attention") == "all":
        raise UnsupportedModelError(
            "the config's use_bidirectional_attention is 'all': such a model encodes "
            "text and does not answer; take one for chats"
        )
    by_layer = fields.get("per_layer_config")
    if not isinstance(by_layer, Mapping):
        return
    layer_types = fields.get("layer_types")
    names = {
        "head_dim": "global_head_dim",
        "num_key_value_heads": "num_global_key_value_heads",
    }
    for index, settings in by_layer.items():
        if not isinstance(settings, Mapping) or settings.keys() - names.keys():
            raise UnsupportedModelError(
                f"the config's per_layer_config of layer {index} is {settings!r:.80}, "
                f"and mlx-lm's definition of {model_type} knows {', '.join(names)}"
            )
        if not _is_full_layer(layer_types, index):
            raise UnsupportedModelError(
                f"the config's per_layer_config names layer {index}, which is no full "
                f"one, and mlx-lm's definition of {model_type} has one size for those"
            )
        for name, global_name in names.items():
            if name in settings:
                _put_once(
                    fields, global_name, settings[name], f"layer {index}'s {name}"
                )


def _is_full_layer(layer_types: Any, index: Any) -> bool:
    if not isinstance(layer_types, list) or not str(index).isdecimal():
        return False
    number = int(index)
    return number < len(layer_types) and layer_types[number] == FULL


def _put_once(fields: Fields, name: str, value: Any, source: str) -> None:
    """Set a field that other sources must not contradict."""
    stated = fields.get(name)
    if stated is not None and stated != value:
        raise ModelFileError(
            f"the config's {name} is {stated!r:.40} and {source} is {value!r:.40}: "
            "they contradict each other"
        )
    fields[name] = value


def _put_granite_hybrid(fields: Fields, _model_type: str) -> None:
    layer_types = fields.get("layer_types")
    older = {_LINEAR: "mamba", FULL: "attention"}
    if isinstance(layer_types, list):
        fields["layer_types"] = [older.get(kind, kind) for kind in layer_types]
    if fields.get("position_embedding_type") is None:
        fields["position_embedding_type"] = "nope"


def _put_kimi_linear(fields: Fields, model_type: str) -> None:
    """Layers and sizes of linear attention, which older writers keep in an object."""
    if fields.get("rope_theta") is None:
        base = 10_000.0
        fields["rope_theta"] = base
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    layer_types = fields.get("layer_types")
    if not isinstance(layer_types, list):
        return
    linear: list[int] = []  # counted from 1
    full: list[int] = []
    for number, kind in enumerate(layer_types, start=1):
        layers = linear if kind == _LINEAR else full
        layers.append(number)
    attention = {
        "kda_layers": linear,
        "full_attn_layers": full,
        "num_heads": fields.get("linear_num_heads"),
        "head_dim": fields.get("linear_head_dim"),
        "short_conv_kernel_size": fields.get("linear_conv_kernel_dim", 4),
    }
    fields.setdefault("linear_attn_config", attention)
    fields.setdefault("mla_use_nope", True)
    kinds = fields.get("mlp_layer_types")
    if isinstance(kinds, list) and fields.get("first_k_dense_replace") is None:
        dense = kinds.count("dense")
        if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
            raise UnsupportedModelError(
                f"the config's mlp_layer_types are {kinds!r:.80}, and mlx-lm's "
                f"definition of {model_type} knows dense layers only before all others"
            )
        fields["first_k_dense_replace"] = dense


def _put_exaone_moe(fields: Fields, _model_type: str) -> None:
    kinds = fields.get("mlp_layer_types")
    if fields.get("is_moe_layer") is None and isinstance(kinds, list):
        fields["is_moe_layer"] = [kind == "sparse" for kind in kinds]


def _put_rotated_dims(fields: Fields, _model_type: str) -> None:
    head_dim = fields.get("head_dim")
    share = fields.get("partial_rotary_factor") or 1
    if fields.get("rotary_dim") is None and type(head_dim) is int:
        fields["rotary_dim"] = int(head_dim * share)


def _put_whole_share(fields: Fields, _model_type: str) -> None:
    """All of a head is rotated where nothing is said of a share."""
    stated = fields.get("rope_parameters")
    if fields.get("partial_rotary_factor") is None:
        fields["partial_rotary_factor"] = 1.0
        if isinstance(stated, Mapping):
            fields["rope_parameters"] = {**stated, "partial_rotary_factor": 1.0}


def _put_head_dim(fields: Fields, _model_type: str) -> None:
    hidden = fields.get("hidden_size")
    heads = fields.get("num_attention_heads")
    if fields.get("head_dim") is None and type(hidden) is int and heads:
        fields["head_dim"] = hidden // heads


def _put_gpt2(fields: Fields, _model_type: str) -> None:
    if fields.get("n_ctx") is None and "n_positions" in fields:
        fields["n_ctx"] = fields["n_positions"]


_FAMILIES: Mapping[str, Callable[[Fields, str], None]] = {
    "qwen3_next": _put_linear_interval,
    "qwen3_5": _put_linear_interval,
    "qwen3_5_text": _put_linear_interval,
    "qwen3_5_moe": _put_linear_interval,
    "qwen3_5_moe_text": _put_linear_interval,
    "gemma4_text": _put_gemma4,
    "granitemoehybrid": _put_granite_hybrid,
    "exaone_moe": _put_exaone_moe,
    "kimi_linear": _put_kimi_linear,
    "minimax": _put_rotated_dims,
    "minimax_m2": _put_rotated_dims,
    "solar_open": _put_whole_share,
    "ernie4_5": _put_head_dim,
    "ernie4_5_moe": _put_head_dim,
    "exaone4": _put_head_dim,
    "falcon_h1": _put_head_dim,
    "glm4": _put_head_dim,
    "qwen3": _put_head_dim,
    "qwen3_moe": _put_head_dim,
    "seed_oss": _put_head_dim,
    "gpt2": _put_gpt2,
}
