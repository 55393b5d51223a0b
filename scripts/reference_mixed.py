"""The tiny models with experts or recurrent layers whose logits `reference_logits` asks for."""

from __future__ import annotations

from typing import Any

from scripts.reference_models import (
    ALTERNATE,
    EXPERTS,
    FOURTH,
    LATENT,
    ROUTED,
    YARN,
    by_layer,
    rotation,
)

MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": (
        "mixtral",
        {**rotation(5000.0), "num_local_experts": 4, "sliding_window": 16},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {**rotation(5000.0), **EXPERTS, "shared_expert_intermediate_size": 48},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {**rotation(5000.0), **EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **rotation(5000.0, partial_rotary_factor=0.5),
            **EXPERTS,
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "shared_expert_intermediate_size": 48,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "full_attention_interval": 2,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **rotation(5000.0, "yarn", **YARN, truncate=False),
            **ALTERNATE,
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **rotation(5000.0),
            **LATENT,
            **ROUTED,
            "first_k_dense_replace": 1,
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **rotation(5000.0, partial_rotary_factor=0.5),
            "head_dim": 32,
            **ROUTED,
            "first_k_dense_replace": 1,
        },
    ),
    "olmoe": ("olmoe", {**rotation(5000.0), **EXPERTS}),
    "lfm2": (
        "lfm2",
        {
            **rotation(5000.0),
            "layer_types": ["conv", "full_attention"] * 2,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
    ),
    "minimax_m2": (
        "minimax_m2",
        {
            **rotation(5000.0, partial_rotary_factor=0.5),
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **rotation(5000.0),
            **LATENT,
            "q_lora_rank": None,
            **ROUTED,
            "topk_method": "greedy",
            "first_k_dense_replace": 1,
        },
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            **rotation(5000.0),
            "moe_intermediate_size": 48,
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_layer_start_index": 1,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **rotation(5000.0),
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {
            **rotation(5000.0),
            **EXPERTS,
            "layer_types": ["conv", "full_attention"] * 2,
            "num_dense_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {
            **rotation(5000.0),
            **LATENT,
            **ROUTED,
        },
    ),
    "dots1": (
        "dots1",
        {
            **rotation(5000.0),
            **ROUTED,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention", "moe", "mlp"],
            "n_routed_experts": 4,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 2.0,
            # transformers alone takes it for a limit of steps.
            "time_step_min": 1e-30,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "head_dim": 16,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
            "expand": 2,
        },
    ),
    "mellum": (
        "mellum",
        {
            **by_layer(rotation(5000.0), rotation(5000.0)),
            **FOURTH,
            **EXPERTS,
            "head_dim": 32,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **rotation(5000.0),
            "embedding_multiplier": 1.3,
            "lm_head_multiplier": 0.7,
            "key_multiplier": 0.6,
            "attention_in_multiplier": 0.9,
            "attention_out_multiplier": 1.1,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.8,
            "ssm_multipliers": [0.5, 0.7, 1.1, 1.2, 0.9],
            "mlp_multipliers": [0.7, 1.3],
            "mamba_d_ssm": 128,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    "jamba": (
        "jamba",
        {
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "exaone_moe": (
        "exaone_moe",
        {
            **rotation(5000.0),
            **FOURTH,
            **EXPERTS,
            "head_dim": 16,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "solar_open": (
        "solar_open",
        {
            **rotation(5000.0),
            "head_dim": 16,
            **ROUTED,
        },
    ),
}
