"""Families of GGUF files for tests: their keys, and the settings of tiny models."""

from __future__ import annotations

from typing import Any

KEYS = {
    "granite": {
        "attention.scale": 0.18,
        "embedding_scale": 2.0,
        "residual_scale": 0.5,
        "logit_scale": 4.0,
    },
    "command-r": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625, "attention.sliding_window": 24},
    "olmo3": {"attention.sliding_window": 24},
    "exaone4": {"attention.sliding_window": 24},
    "glm4moe": {
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "leading_dense_block_count": 1,
        "nextn_predict_layers": 1,
        "rope.dimension_count": 16,
    },
    "qwen3vlmoe": {"expert_count": 4, "expert_used_count": 2},
    "deepseek2": {
        "attention.head_count_kv": 1,
        "attention.key_length": 48,
        "attention.key_length_mla": 48,
        "attention.kv_lora_rank": 32,
        "attention.q_lora_rank": 24,
        "attention.value_length": 32,
        "attention.value_length_mla": 24,
        "expert_count": 4,
        "expert_feed_forward_length": 48,
        "expert_gating_func": 2,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_shared_count": 1,
        "expert_used_count": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.8,
        "leading_dense_block_count": 1,
        "rope.dimension_count": 16,
    },
}
DELTA_NET = {
    "full_attention_interval": 2,
    "rope.dimension_count": 16,
    "ssm.conv_kernel": 4,
    "ssm.group_count": 2,
    "ssm.inner_size": 128,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
}
KEYS["granitemoe"] = {**KEYS["granite"], "expert_count": 4, "expert_used_count": 2}
KEYS["granitehybrid"] = {
    **KEYS["granite"],
    "attention.head_count_kv": [0, 2, 0, 2],
    "rope.scaling.finetuned": False,
    "ssm.conv_kernel": 4,
    "ssm.group_count": 1,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
}
KEYS["granitehybrid-experts"] = {
    **KEYS["granitehybrid"],
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_feed_forward_length": 48,
}
KEYS["ministral3"] = {
    "attention.temperature_scale": 0.1,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.yarn_log_multiplier": 1.0,
}
KEYS["lfm2"] = {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2]}
KEYS["lfm2moe"] = {
    **KEYS["lfm2"],
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
}
KEYS["gemma4"] = {
    "attention.head_count_kv": [2, 2, 2, 2],
    "attention.key_length": 64,
    "attention.key_length_swa": 32,
    "attention.shared_kv_layers": 2,
    "attention.sliding_window": 24,
    "attention.sliding_window_pattern": [True, False, True, False],
    "attention.value_length": 64,
    "embedding_length_per_layer_input": 16,
    "feed_forward_length": [96, 96, 192, 192],
    "final_logit_softcapping": 30.0,
    "rope.dimension_count": 64,
    "rope.freq_base_swa": 10000.0,
}
KEYS["qwen35"] = DELTA_NET
KEYS["qwen35moe"] = {**DELTA_NET, "expert_count": 4, "expert_used_count": 2}
_GRANITE = {
    "attention_multiplier": 0.18,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
# llama.cpp's name, mlx-lm's, and what its settings are where a tiny model has others.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": (
        "granite",
        _GRANITE,
    ),
    "granitemoe": (
        "granitemoe",
        _GRANITE,
    ),
    "granitehybrid": (
        "granitemoehybrid",
        {
            **_GRANITE,
            "num_local_experts": 0,
            "position_embedding_type": "nope",
            "time_step_limit": [0.0, float("inf")],
        },
    ),
    "granitehybrid-experts": (
        "granitemoehybrid",
        {
            **_GRANITE,
            "position_embedding_type": "nope",
            "time_step_limit": [0.0, float("inf")],
        },
    ),
    "mistral3": ("llama", {}),
    "ministral3": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "lfm2": ("lfm2", {"conv_bias": False, "conv_L_cache": 3}),
    "lfm2moe": (
        "lfm2_moe",
        {
            "conv_bias": False,
            "conv_L_cache": 3,
            "norm_topk_prob": True,
            "num_dense_layers": 1,
            "use_expert_bias": True,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "final_logit_softcapping": 30.0,
            "global_head_dim": 64,
            "head_dim": 32,
            "hidden_size_per_layer_input": 16,
            "partial_rotary_factor": 1.0,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.25,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                },
            },
        },
    ),
    "smollm3": ("smollm3", {}),
    "ernie4_5": ("ernie4_5", {}),
    "seed_oss": ("seed_oss", {"attention_bias": True}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"layer_types": [*["sliding_attention"] * 3, "full_attention"]}),
    "exaone4": ("exaone4", {"sliding_window_pattern": "LLLG"}),
    "hunyuan-dense": ("hunyuan_v1_dense", {}),
    "starcoder2": ("starcoder2", {}),
    "command-r": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window_pattern": 4}),
    "glm4moe": ("glm4_moe", {"routed_scaling_factor": 2.5, "attention_bias": True}),
    "deepseek2": ("glm4_moe_lite", {"routed_scaling_factor": 1.8, "v_head_dim": 24}),
    "qwen2vl": ("qwen2", {}),
    "qwen3vl": ("qwen3", {}),
    "qwen3vlmoe": ("qwen3_moe", {}),
    "qwen35": ("qwen3_5", {"num_experts": 0}),
    "qwen35moe": ("qwen3_5_moe", {}),
}
# Gemma 4 of 31 billion parameters: values of full layers are their keys.
KEYS["gemma4-large"] = {
    **KEYS["gemma4"],
    "attention.head_count_kv": [2, 1, 2, 1],
    "attention.shared_kv_layers": 0,
    "embedding_length_per_layer_input": 0,
    "feed_forward_length": 96,
}
FAMILIES["gemma4-large"] = (
    "gemma4_text",
    {
        **FAMILIES["gemma4"][1],
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
    },
)
KEYS["gemma4-experts"] = {
    **KEYS["gemma4-large"],
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 48,
}
FAMILIES["gemma4-experts"] = (
    "gemma4_text",
    {
        **FAMILIES["gemma4-large"][1],
        "enable_moe_block": True,
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "top_k_experts": 2,
    },
)
# What llama.cpp calls a family that has two forms.
ARCHITECTURE_OF = {
    "gemma4-experts": "gemma4",
    "gemma4-large": "gemma4",
    "granitehybrid-experts": "granitehybrid",
    "ministral3": "mistral3",
    "olmo3": "olmo2",
}
# Names that the package knows only by those of the published weights.
RENAMED = {
    "e_score_correction_bias": "exp_probs_b",
    "expert_bias": "exp_probs_b",
    "q_layernorm": "attn_q_norm",
    "k_layernorm": "attn_k_norm",
    "layer_scalar": "layer_output_scale",
    "embed_q": "attn_k_b",
    "unembed_out": "attn_v_b",
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp",
    "per_expert_scale": "ffn_down_exps",
    "switch_glu.gate_proj": "ffn_gate_up_exps",
    "switch_glu.down_proj": "ffn_down_exps",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    "switch_mlp.gate_proj": "ffn_gate_exps",
    "switch_mlp.up_proj": "ffn_up_exps",
    "switch_mlp.down_proj": "ffn_down_exps",
    "query_layernorm": "attn_q_norm",
    "key_layernorm": "attn_k_norm",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.dt_bias": "ssm_dt",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mamba.in_proj": "ssm_in",
    "mamba.conv1d": "ssm_conv1d",
    "mamba.dt_bias": "ssm_dt",
    "mamba.A_log": "ssm_a",
    "mamba.D": "ssm_d",
    "mamba.norm": "ssm_norm",
    "mamba.out_proj": "ssm_out",
    "shared_mlp.output_linear": "ffn_down_shexp",
}
# Their converters write queries and keys for an interleaved rotation.
PERMUTED = (
    "granite",
    "granitehybrid",
    "granitehybrid-experts",
    "granitemoe",
    "mistral3",
    "ministral3",
    "smollm3",
)
SUFFIXES = {"exp_probs_b": ".bias", "ssm_dt": ".bias", "ssm_a": "", "ssm_d": ""}
