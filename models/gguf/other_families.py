"""The keys of GGUF files of families that came later, as `family_keys` has the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.gguf.gemma4 import gemma4_config
from rvllm_local.models.gguf.keys import Keys
from rvllm_local.models.gguf.latents import latent_config
from rvllm_local.models.gguf.reader import GGUFFile

Config = dict[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_EVERY_FOURTH = 4


def _granite(keys: Keys, config: Config) -> Config:
    head_dim = config["head_dim"]
    return {
        **config,
        "attention_bias": has_tensor(keys, "attn_q.bias"),
        "mlp_bias": has_tensor(keys, "ffn_up.bias"),
        "attention_multiplier": keys.factor("attention.scale", head_dim**-0.5),
        "embedding_multiplier": keys.factor("embedding_scale", 1.0),
        "residual_multiplier": keys.factor("residual_scale", 1.0),
        "logits_scaling": keys.factor("logit_scale", 1.0),
    }


def _granite_moe(keys: Keys, config: Config) -> Config:
    return {
        **_granite(keys, config),
        "intermediate_size": expert_width(keys),
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
    }


def _granite_hybrid(keys: Keys, config: Config) -> Config:
    """A layer without queries is recurrent.

    llama.cpp parts the norm of recurrent layers by groups, and the definition does not.
    """
    groups = keys.integer("ssm.group_count")
    if groups != 1:
        raise UnsupportedModelError(
            f"{keys.path}: key 'ssm.group_count' is {groups}, and only 1 is supported"
        )
    layers = []
    for layer in range(config["num_hidden_layers"]):
        is_attention = f"blk.{layer}.attn_q.weight" in keys.file.tensors
        layers.append("attention" if is_attention else "mamba")
    heads = keys.integer("ssm.time_step_rank")
    settings = {
        **_granite(keys, config),
        "layer_types": layers,
        "mamba_conv_bias": has_tensor(keys, "ssm_conv1d.bias"),
        "mamba_d_conv": keys.integer("ssm.conv_kernel"),
        "mamba_d_head": keys.integer("ssm.inner_size") // heads,
        "mamba_d_state": keys.integer("ssm.state_size"),
        "mamba_n_groups": groups,
        "mamba_n_heads": heads,
        "mamba_proj_bias": has_tensor(keys, "ssm_in.bias"),
        "position_embedding_type": _rotates(keys),
        "time_step_limit": (0.0, math.inf),
    }
    if not keys.get("expert_count"):
        return settings
    return {
        **settings,
        "intermediate_size": expert_width(keys),
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "shared_intermediate_size": keys.integer(
            "expert_shared_feed_forward_length",
            rows_of(keys.file, "ffn_gate_shexp.weight"),
        ),
    }


def _rotates(keys: Keys) -> str:
    """How attention knows positions; the key's name says something else."""
    return "nope" if keys.get("rope.scaling.finetuned") is False else "rope"


def _ministral3(keys: Keys, config: Config) -> Config:
    """Raises `UnsupportedModelError` for positions that are not scaled as all are."""
    scaling = config.get("rope_scaling") or {}
    logarithm = keys.get("rope.scaling.yarn_log_multiplier")
    if scaling.get("rope_type") != "yarn" or logarithm not in (None, 0, 1):
        raise UnsupportedModelError(
            f"{keys.path}: a ministral3 model is supported with positions scaled by "
            f"YaRN and a multiplier of 1 alone, and this one has {logarithm!r:.40}"
        )
    rotation = {
        **scaling,
        "rope_theta": config["rope_theta"],
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": keys.positive("attention.temperature_scale"),
    }
    settings = {**config, "rope_parameters": rotation}
    settings.pop("rope_scaling")
    return settings


def _lfm2(keys: Keys, config: Config) -> Config:
    """A layer without heads of keys is a convolution."""
    if not has_tensor(keys, "attn_k.weight"):
        raise UnsupportedModelError(f"{keys.path}: an lfm2 model without attention")
    layers = []
    for layer in range(config["num_hidden_layers"]):
        is_attention = f"blk.{layer}.attn_k.weight" in keys.file.tensors
        layers.append(_FULL if is_attention else "conv")
    settings = {
        **config,
        "norm_eps": config["rms_norm_eps"],
        "conv_bias": False,
        "conv_L_cache": keys.integer("shortconv.l_cache"),
        "layer_types": layers,
        "rope_theta": keys.positive("rope.freq_base", 1e6),
    }
    if config["model_type"] == "lfm2_moe":
        return {**settings, **_lfm2_experts(keys)}
    return {
        **settings,
        "block_dim": config["hidden_size"],
        "block_ff_dim": config["intermediate_size"],
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2_experts(keys: Keys) -> Config:
    keys.require_sigmoid(None, 0)
    return {
        "moe_intermediate_size": expert_width(keys),
        "norm_topk_prob": True,
        "num_dense_layers": keys.whole("leading_dense_block_count", 0),
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "use_expert_bias": has_tensor(keys, "exp_probs_b.bias"),
    }


def _smollm3(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "attention_bias": has_tensor(keys, "attn_q.bias"),
        "mlp_bias": has_tensor(keys, "ffn_up.bias"),
        "no_rope_layer_interval": _EVERY_FOURTH,
    }


def _ernie(keys: Keys, config: Config) -> Config:
    return {**config, "use_bias": has_tensor(keys, "attn_q.bias")}


def _seed_oss(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "attention_bias": has_tensor(keys, "attn_q.bias"),
        "attention_out_bias": has_tensor(keys, "attn_output.bias"),
    }


def _olmo3(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _windowed_layers(config),
    }


def _exaone4(keys: Keys, config: Config) -> Config:
    """Without a window all layers are full, and all rotate."""
    window = keys.get("attention.sliding_window") or None
    return {
        **config,
        "rope_scaling": config.get("rope_scaling"),
        "sliding_window": window,
        "sliding_window_pattern": "LLLG" if window else None,
    }


def _windowed_layers(config: Config) -> list[str]:
    """Every fourth layer is full."""
    layers = range(1, config["num_hidden_layers"] + 1)
    return [_SLIDING if number % _EVERY_FOURTH else _FULL for number in layers]


def _hunyuan(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "attention_bias": has_tensor(keys, "attn_q.bias"),
        "use_qk_norm": has_tensor(keys, "attn_q_norm.weight"),
    }


def _starcoder2(keys: Keys, config: Config) -> Config:
    return {**config, "norm_epsilon": config["rms_norm_eps"]}


def _cohere(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "layer_norm_eps": config["rms_norm_eps"],
        "logit_scale": keys.positive("logit_scale"),
        "use_qk_norm": has_tensor(keys, "attn_q_norm.weight"),
    }


def _cohere2(keys: Keys, config: Config) -> Config:
    return {
        **_cohere(keys, config),
        "sliding_window": keys.integer("attention.sliding_window"),
        "sliding_window_pattern": _EVERY_FOURTH,
    }


def _glm4_moe(keys: Keys, config: Config) -> Config:
    keys.require_sigmoid(None, 0)
    head_dim = config["head_dim"]
    return {
        **config,
        "attention_bias": has_tensor(keys, "attn_q.bias"),
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0),
        "moe_intermediate_size": expert_width(keys),
        "n_group": 1,
        "n_routed_experts": keys.integer("expert_count"),
        "n_shared_experts": keys.integer("expert_shared_count", 1),
        "norm_topk_prob": bool(keys.get("expert_weights_norm")),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "partial_rotary_factor": keys.integer("rope.dimension_count", head_dim)
        / head_dim,
        "rope_scaling": config.get("rope_scaling"),
        "routed_scaling_factor": keys.factor("expert_weights_scale", 1.0),
        "topk_group": 1,
        "use_qk_norm": has_tensor(keys, "attn_q_norm.weight"),
    }


def _qwen3_5(keys: Keys, config: Config) -> Config:
    """The text model's settings lie in a part of their own."""
    value_heads = keys.integer("ssm.time_step_rank")
    inner = keys.integer("ssm.inner_size")
    key_heads = keys.integer("ssm.group_count")
    if inner % (32 * value_heads) or value_heads % key_heads:
        raise UnsupportedModelError(
            f"{keys.path}: {value_heads} heads of values cannot share {key_heads} heads "
            f"of keys and a width of {inner}"
        )
    head_dim = config["head_dim"]
    rotated = keys.integer("rope.dimension_count", head_dim)
    rotation = {
        "rope_type": "default",
        **config.get("rope_scaling", {}),
        "rope_theta": config["rope_theta"],
        "partial_rotary_factor": rotated / head_dim,
    }
    text = {
        **config,
        "model_type": f"{config['model_type']}_text",
        "full_attention_interval": keys.integer(
            "full_attention_interval", _EVERY_FOURTH
        ),
        "linear_conv_kernel_dim": keys.integer("ssm.conv_kernel"),
        "linear_key_head_dim": keys.integer("ssm.state_size"),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": inner // value_heads,
        "partial_rotary_factor": rotated / head_dim,
        "rope_parameters": rotation,
    }
    text.pop("rope_scaling", None)
    if keys.get("expert_count"):
        text |= {
            "num_experts": keys.integer("expert_count"),
            "num_experts_per_tok": keys.integer("expert_used_count"),
            "moe_intermediate_size": expert_width(keys),
            "shared_expert_intermediate_size": keys.integer(
                "expert_shared_feed_forward_length",
                rows_of(keys.file, "ffn_gate_shexp.weight"),
            ),
        }
    shared = ("eos_token_id", "tie_word_embeddings", "vocab_size", "model_type")
    return {**{key: config[key] for key in shared}, "text_config": text}


def has_tensor(keys: Keys, part: str) -> bool:
    """True if some layer has the tensor."""
    return any(name.endswith(f".{part}") for name in keys.file.tensors)


def expert_width(keys: Keys) -> int:
    """The width of an expert; that of its tensor where the file does not say it."""
    width = rows_of(keys.file, "ffn_gate_exps.weight")
    return keys.integer("expert_feed_forward_length", width)


def rows_of(file: GGUFFile, part: str) -> int | None:
    """The rows of the first layer's tensor that has this name."""
    for name, info in file.tensors.items():
        if name.endswith(f".{part}") and len(info.shape) >= 2:
            return info.shape[-2]
    return None


OTHER_FAMILIES: Mapping[str, Callable[[Keys, Config], Config]] = {
    "cohere": _cohere,
    "cohere2": _cohere2,
    "ernie4_5": _ernie,
    "exaone4": _exaone4,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": latent_config,
    "gemma4_text": gemma4_config,
    "granite": _granite,
    "granitemoe": _granite_moe,
    "granitemoehybrid": _granite_hybrid,
    "hunyuan_v1_dense": _hunyuan,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "ministral3": _ministral3,
    "olmo3": _olmo3,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "starcoder2": _starcoder2,
}
