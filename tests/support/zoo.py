"""Tiny configurations of as many of mlx-lm's architectures as can be made small, for models with random weights.

`SIZES` are small values by the name of a configuration's field; an architecture gets those that its definition knows,
and what is peculiar to it from `_PECULIAR`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.models.architecture import import_family
from rvllm_local.models.families import build_model
from rvllm_local.models.to_float32 import widen_to_float32

VOCAB_SIZE = 384
_LAYERS = 4
_WINDOWED = ["sliding_attention", "full_attention"] * (_LAYERS // 2)

# What a field of this name gets wherever a definition has it.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("vocab_size", "vocab_size_per_layer_input", "num_vocab"), VOCAB_SIZE
    ),
    "max_position_embeddings": 2048,
    "model_max_length": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    # widths
    **dict.fromkeys(
        ("hidden_size", "d_model", "model_dim", "n_embd", "hidden_dim"), 64
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_hidden_size",
            "ff_intermediate_size",
            "n_inner",
            "block_dim",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
        ),
        48,
    ),
    **dict.fromkeys(
        (
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "intermediate_size_mlp",
        ),
        48,
    ),
    # layers and heads
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "num_layers",
            "n_layers",
            "n_layer",
            "num_transformer_layers",
        ),
        _LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_query_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    "head_dim": 32,
    # experts
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(
        (
            "num_experts_per_tok",
            "moe_topk",
            "moe_k",
            "num_experts_per_token",
            "top_k_experts",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "n_shared_experts",
            "num_shared_experts",
            "num_shared_expert",
            "moe_num_shared_experts",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "first_k_dense_replace",
            "num_dense_layers",
            "decoder_sparse_step",
            "moe_layer_freq",
        ),
        1,
    ),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    # latent attention
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    # recurrent layers
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(
        (
            "linear_conv_kernel_dim",
            "conv_kernel",
            "conv_window",
            "mamba_d_conv",
            "conv1d_width",
        ),
        4,
    ),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head", "hidden_size_per_head"), 32),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_expand", "expand"), 1),
    "time_step_rank": 8,
    "conv_L_cache": 3,
    "time_step_limit": (0.0, 100.0),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias", "use_conv_bias"),
        False,
    ),
    **dict.fromkeys(("conv_bias", "use_qkv_bias", "use_expert_bias"), False),
    "mlp_only_layers": [],
    "partial_rotary_factor": 0.5,
    "use_qk_norm": True,
    **dict.fromkeys(("dim_model_base",), 64),
    **dict.fromkeys(
        (
            "scale_depth",
            "scale_emb",
            "logits_scaling",
            "embedding_multiplier",
            "residual_multiplier",
        ),
        1.0,
    ),
    "attention_multiplier": 0.18,
    **dict.fromkeys(("n_positions", "n_ctx"), 2048),
    **dict.fromkeys(("layer_group_size",), 2),
    "group_norm_size": 1,
    **dict.fromkeys(
        (
            "rms_norm_eps",
            "layer_norm_eps",
            "norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
        ),
        1e-6,
    ),
}
_WINDOW = {"sliding_window": 24, "layer_types": _WINDOWED}
_DEEPSEEK = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "qk_head_dim": 48}
_ZERO_EXPERTS = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "zero_expert_num": 1,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "routed_scaling_factor": 1.0,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * (_LAYERS // 2),
    "full_attention_interval": 2,
}

# What an architecture needs besides, or instead. None leaves a field out.
_PECULIAR: dict[str, dict[str, Any]] = {
    "bitnet": {"head_dim": 16},  # heads together are as wide as the model
    "afm7": {"num_kv_reuse_layers": 1, "hidden_dim_scale_factor": 1.5},
    "afmoe": _WINDOW,
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {
        "sliding_window": 24,
        "sliding_window_layers": [1, 3],
        "conv_window": 2,
    },
    "cohere": {"num_key_value_heads": 2},
    "cohere2": {"sliding_window": 24, "sliding_window_pattern": 2, "head_dim": 16},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v2": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 1.0,
            "original_max_position_embeddings": 2048,
        }
    },
    "deepseek_v32": {"index_topk": 16, "index_head_dim": 32, "index_n_heads": 2},
    "exaone": {"head_dim": 16},
    "exaone4": {
        "rope_scaling": _ROPE,
        "sliding_window": 24,
        "sliding_window_pattern": "LG",
    },
    "exaone_moe": {**_WINDOW, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_d_head": 32, "head_dim": 32},
    "gear": {
        "layer_types": [
            "conv_mixer",
            "full_attention",
            "sliding_attention",
            "full_attention",
        ],
        "sliding_window": 24,
        "attn_logit_softcapping": 2.0,
    },
    "gemma2": {"query_pre_attn_scalar": 32.0, "attn_logit_softcapping": 2.0},
    "gemma3": {
        "text_model": "gemma3_text",
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
    },
    "gemma3_text": {
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
    },
    "gemma4": {"text_model": "gemma4_text", **_WINDOW, "num_kv_shared_layers": 0},
    "gemma4_text": {**_WINDOW, "num_kv_shared_layers": 0},
    "glm_moe_dsa": {
        **_DEEPSEEK,
        "index_topk": 16,
        "index_head_dim": 32,
        "index_n_heads": 2,
        "rope_parameters": _ROPE,
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * (_LAYERS // 2),
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "shared_intermediate_size": 48,
    },
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": False,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "alpha": 1.0, "factor": 1.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_expand": 2,
    },
    "kimi_k3": {
        "text_model": "kimi_linear",
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
        "attn_res_block_size": 2,
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
    },
    "kimi_linear": {
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
    },
    "lfm2": {
        "block_multiple_of": 16,
        "block_dim": 64,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1, 3],
    },
    "lfm2_moe": {"full_attn_idxs": [1, 3]},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "num_key_value_heads": 2},
    "llama4": {
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 2,
        "rope_scaling": {**_ROPE, "factor": 1.0},
        "text_model": "llama4_text",
        "num_experts_per_tok": 1,
    },
    "longcat_flash": _ZERO_EXPERTS,
    "longcat_flash_ngram": _ZERO_EXPERTS,
    "mamba": {"time_step_rank": 8, "conv_kernel": 4},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "mellum": {
        **_WINDOW,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "mimo_v2_flash": {
        **_DEEPSEEK,
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 24,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 32,
        "swa_v_head_dim": 32,
        "layernorm_epsilon": 1e-6,
    },
    "minicpm3": {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8,
            "original_max_position_embeddings": 2048,
        }
    },
    "gemma3n": {
        **_WINDOW,
        "num_kv_shared_layers": 1,
        "rope_local_base_freq": 10000.0,
        "final_logit_softcapping": 30.0,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
    },
    "glm4_moe": {"rope_scaling": {}},
    "minimax": {"rotary_dim": 16},
    "minimax_m3_vl": {
        "dense_intermediate_size": 96,
        "moe_layer_freq": [0, 1, 1, 1],
        "sparse_attention_config": {
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 32,
            "sparse_block_size": 16,
            "sparse_topk_blocks": 2,
            "sparse_local_block": 1,
            "sparse_attention_freq": [0, 1, 0, 1],
        },
    },
    "muse_spark": {
        "post_norm_eps": 1e-6,
        "rope_parameters": _ROPE,
        "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0],
        "layer_types": _WINDOWED,
        "sliding_window": 24,
        "final_logit_softcapping": 30.0,
        "output_multiplier": 1.0,
        "moe_hidden_size": 32,
        "n_shared_experts": None,
        "num_shared_experts": 0,
    },
    "ministral3": {
        "rope_parameters": {
            **_ROPE,
            "original_max_position_embeddings": 2048,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "mistral4": {
        "rope_parameters": {
            **_ROPE,
            "original_max_position_embeddings": 2048,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "nemotron": {"hidden_act": "relu2"},
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "layers_block_type": None,
        "mamba_head_dim": 32,
    },
    "olmo3": {**_WINDOW, "head_dim": 16},
    "olmo_hybrid": {
        **_LINEAR,
        "linear_allow_neg_eigval": True,
        "linear_num_key_heads": 4,
    },
    "openelm": {
        "ffn_dim_divisor": 16,
        "num_query_heads": [4] * _LAYERS,
        "num_kv_heads": [2] * _LAYERS,
        "ffn_multipliers": [1.5] * _LAYERS,
    },
    "phi3small": {
        "dense_attention_every_n_layers": 1,
        "gegelu_limit": 20.0,
        "vocab_size": 100352,  # it masks tokens up to 100351
    },
    "phixtral": {"rotary_dim": 8},
    "plamo": {"num_key_value_heads": None, "n_shared_head": 2},
    "prism_hadamard_qwen35": {
        "text_model": "qwen3_5_text",
        **_LINEAR,
        "num_experts": 0,
        "hidden_size": 128,
        "intermediate_size": 512,
    },
    "qwen": {"kv_channels": 16, "intermediate_size": 96, "num_attention_heads": 4},
    "qwen3_5": {"text_model": "qwen3_5_text", **_LINEAR},
    "qwen3_5_moe": {"text_model": "qwen3_5_moe_text", **_LINEAR},
    "qwen3_next": {"full_attention_interval": 2},
    "qwen3_vl_moe": {"text_model": "qwen3_vl_moe_text"},
    "recurrent_gemma": {
        "logits_soft_cap": 30.0,
        "attention_window_size": 64,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "rwkv7": {
        **dict.fromkeys(
            (
                "a_low_rank_dim",
                "v_low_rank_dim",
                "gate_low_rank_dim",
                "decay_low_rank_dim",
            ),
            16,
        ),
        "head_dim": 32,
    },
    "spark2_5": {
        "sliding_window": 24,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        "layer_types": _WINDOWED,
    },
    "step3p5": {"num_attention_groups": 2, "moe_num_experts": 4, "moe_top_k": 2},
}

# What stands beside the configuration of the text model.
_OUTER: dict[str, dict[str, Any]] = {
    "prism_hadamard_qwen35": {
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": "model.layers.0.mlp.down_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 512,
            }
        ],
    },
}


def zoo_config(arch: str) -> dict[str, Any]:
    """A tiny config.json of one of mlx-lm's architectures."""
    family = import_family(arch)
    known = {field.name for field in dataclasses.fields(family.ModelArgs)}
    peculiar = _PECULIAR.get(arch, {})
    values = {**SIZES, **peculiar}
    inner = peculiar.get("text_model", arch)
    if "text_config" in known:
        text = {name: value for name, value in values.items() if value is not None} | {
            "model_type": inner
        }
        return {
            "model_type": arch,
            "text_config": text,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 2048,
            **_OUTER.get(arch, {}),
        }
    config = {
        name: value
        for name, value in values.items()
        if name in known and value is not None
    }
    return {
        **config,
        "model_type": arch,
        "vocab_size": values["vocab_size"],
        "max_position_embeddings": 2048,
    }


def zoo_model(
    arch: str, seed: int = 1, config: dict[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A float32 module with seeded weights, large enough for greedy sequences to vary, and its config."""
    config = zoo_config(arch) if config is None else config
    model = build_model(config)
    random = np.random.default_rng(seed)
    weights = [
        (name, _values(name, value, random))
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    if config["model_type"] == "bitnet":
        widen_to_float32(model)  # as a CPU loads it: MLX's product is for Metal alone
    model.eval()
    mx.eval(model.parameters())
    return model, config


def _values(name: str, value: mx.array, random: np.random.Generator) -> mx.array:
    if value.dtype == mx.uint8:  # four codes of ternary weights each
        codes = random.integers(0, 3, (4, *value.shape))
        shifts = np.array([0, 2, 4, 6]).reshape(4, *(1 for _ in value.shape))
        return mx.array((codes << shifts).sum(axis=0).astype(np.uint8))
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    if value.ndim < 2:  # norms, biases, decays: near what the definition starts with
        start = np.array(value.astype(mx.float32))
        return mx.array(
            (start + 0.1 * random.standard_normal(value.shape)).astype(np.float32)
        )
    scale = 0.7 if "embed" in name or "wte" in name else 1.6 / np.sqrt(value.shape[-1])
    return mx.array((scale * random.standard_normal(value.shape)).astype(np.float32))
