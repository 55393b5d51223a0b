"""What only one family's GGUF files have: keys, and values that llama.cpp's loader knows.

Where a file leaves a key out, the value is the one that its loader takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.gguf.keys import Keys
from rvllm_local.models.gguf.other_families import (
    OTHER_FAMILIES,
    expert_width,
    rows_of,
)

Config = dict[str, Any]
# The sizes that scale queries by the model's width instead of their own, by layers.
_GEMMA2_27B, _GEMMA3_27B = 46, 62
# Llama: any of these says that the layers have biases.
_ATTENTION_BIASES = ("blk.0.attn_q.bias", "blk.0.attn_output.bias")
_MLP_BIASES = ("blk.0.ffn_gate.bias", "blk.0.ffn_up.bias", "blk.0.ffn_down.bias")
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Llama 4: what its loader knows without a key.
_CHUNK = 8192
_EXPERTS_WITHOUT_NORM = 128
_NO_ROPE_STEP = 4


def family_config(keys: Keys, config: Config) -> Config:
    """The whole configuration: `config`, with what its family adds or changes."""
    read = _FAMILIES.get(config["model_type"])
    return config if read is None else read(keys, config)


def _llama(keys: Keys, config: Config) -> Config:
    tensors = keys.file.tensors
    return {
        **config,
        "attention_bias": any(name in tensors for name in _ATTENTION_BIASES),
        "mlp_bias": any(name in tensors for name in _MLP_BIASES),
    }


def _gemma2(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "attn_logit_softcapping": keys.positive("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.positive("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA2_27B),
        "sliding_window": keys.integer("attention.sliding_window", 4096),
    }


def _gemma3(keys: Keys, config: Config) -> Config:
    cap = keys.get("final_logit_softcapping")
    if cap:
        raise UnsupportedModelError(
            f"{keys.path}: key 'final_logit_softcapping' is {cap!r:.40}, and mlx-lm's "
            "definition of gemma3 does not know it"
        )
    return {
        **config,
        "sliding_window": keys.integer("attention.sliding_window", 1024),
        "sliding_window_pattern": _window_pattern(keys, config),
        "rope_local_base_freq": keys.positive("rope.freq_base_swa", 10000.0),
        "rope_theta": keys.positive("rope.freq_base", 1e6),
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA3_27B),
    }


def _window_pattern(keys: Keys, config: Config) -> int:
    """The number of layers up to a full one: stated, or by a value for each layer.

    Raises `UnsupportedModelError` for layers that no number describes.
    """
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        layers: int = config["num_hidden_layers"]
        has_window = [bool(value) for value in pattern[:layers]]
        interval: int = layers + 1
        if False in has_window:
            interval = has_window.index(False) + 1
        expected = [number % interval != 0 for number in range(1, layers + 1)]
        if has_window != expected:
            raise UnsupportedModelError(
                f"{keys.path}: key 'attention.sliding_window_pattern' is "
                f"{pattern!r:.80}, and mlx-lm's definition of gemma3 knows only every "
                "n-th layer as a full one"
            )
        return interval
    if type(pattern) is int and pattern > 0:
        return pattern
    return 6


def _query_scalar(config: Config, layers_of_largest: int) -> float:
    """The number whose root divides queries."""
    if config["num_hidden_layers"] == layers_of_largest:
        return float(config["hidden_size"] / config["num_attention_heads"])
    return float(config["head_dim"])


def _phi3(keys: Keys, config: Config) -> Config:
    head_dim = config["head_dim"]
    if head_dim * config["num_attention_heads"] != config["hidden_size"]:
        raise UnsupportedModelError(
            f"{keys.path}: a phi3 model with heads of {head_dim} is not supported"
        )
    window = keys.get("attention.sliding_window")
    return {
        **config,
        "partial_rotary_factor": _rotated_share(keys, config),
        "sliding_window": window or None,  # converters write 0 for none
    }


def _glm4(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "partial_rotary_factor": _rotated_share(keys, config),
        "attention_bias": "blk.0.attn_q.bias" in keys.file.tensors,
    }


def _rotated_share(keys: Keys, config: Config) -> float:
    head_dim: int = config["head_dim"]
    return keys.integer("rope.dimension_count", head_dim) / head_dim


def _qwen3_moe(keys: Keys, config: Config) -> Config:
    return {**config, **_experts(keys), "norm_topk_prob": True}


def _qwen2_moe(keys: Keys, config: Config) -> Config:
    shared = rows_of(keys.file, "ffn_gate_shexp.weight")
    width = keys.integer("expert_shared_feed_forward_length", shared)
    return {
        **config,
        **_experts(keys),
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": width,
    }


def _experts(keys: Keys) -> Config:
    """The experts of a Qwen model."""
    return {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": expert_width(keys),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _mixtral(keys: Keys, config: Config) -> Config:
    return {
        **config,
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
    }


def _gpt_oss(keys: Keys, config: Config) -> Config:
    """Every other layer has the window, the first one too.

    Its YaRN does not round the limits of the ramp, which no key of the file says.
    """
    scaling = config.get("rope_scaling")
    if scaling is not None:
        config = {**config, "rope_scaling": {**scaling, "truncate": False}}
    layer_types = []
    for layer in range(config["num_hidden_layers"]):
        layer_types.append(_FULL if layer % 2 else _SLIDING)
    return {
        **config,
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "intermediate_size": expert_width(keys),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": layer_types,
    }


def _llama4(keys: Keys, config: Config) -> Config:
    """The text model's settings lie in a part of their own.

    Raises `UnsupportedModelError` for what the definition has no setting for.
    """
    used = keys.integer("expert_used_count")
    if used != 1 or config["num_hidden_layers"] < _NO_ROPE_STEP:
        raise UnsupportedModelError(
            f"{keys.path}: a llama4 model with {used} experts a token and "
            f"{config['num_hidden_layers']} layers is not supported"
        )
    experts = keys.integer("expert_count")
    if keys.get("attention.sliding_window") == 0:
        raise UnsupportedModelError(
            f"{keys.path}: a llama4 model whose layers attend to the whole context is "
            "not supported"
        )
    text = {
        **config,
        "attention_bias": "blk.0.attn_q.bias" in keys.file.tensors,
        "attention_chunk_size": _CHUNK,
        "attn_scale": keys.positive("attention.temperature_scale", 0.1),
        "floor_scale": keys.integer("attention.temperature_length", _CHUNK),
        "interleave_moe_layer_step": keys.integer("interleave_moe_layer_step", 1),
        "intermediate_size": expert_width(keys),
        "intermediate_size_mlp": config["intermediate_size"],
        "num_experts_per_tok": used,
        "num_local_experts": experts,
        "rope_scaling": config.get("rope_scaling"),
        "use_qk_norm": experts != _EXPERTS_WITHOUT_NORM,
    }
    shared = ("eos_token_id", "tie_word_embeddings", "vocab_size", "model_type")
    return {**{key: config[key] for key in shared}, "text_config": text}


_FAMILIES: Mapping[str, Callable[[Keys, Config], Config]] = {
    "llama": _llama,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "glm4": _glm4,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    **OTHER_FAMILIES,
}
