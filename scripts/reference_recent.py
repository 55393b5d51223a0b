"""Tiny models of further families whose logits `reference_logits` asks for."""

from __future__ import annotations

from typing import Any

from scripts.reference_mixed import MIXED
from scripts.reference_models import ALTERNATE, EXPERTS, HEADS, rotation
from scripts.reference_nested import DEEP, PICTURES, TEXT, nested

_LINEAR = {
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
_JAMBA = MIXED["jamba"][1]
_LONGROPE = rotation(
    5000.0,
    "longrope",
    short_factor=[1.0 + 0.1 * pair for pair in range(8)],
    long_factor=[2.0 + 0.3 * pair for pair in range(8)],
    original_max_position_embeddings=64,
)

RECENT: dict[str, tuple[str, dict[str, Any]]] = {
    # No longer than what it was first trained on: the other factors.
    "phi3-short": (
        "phi3",
        {
            **_LONGROPE,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 64,
        },
    ),
    "nanochat": (
        "nanochat",
        {**rotation(5000.0), "num_key_value_heads": 4, "final_logit_softcapping": 15.0},
    ),
    "olmo_hybrid": ("olmo_hybrid", {**rotation(5000.0), **_LINEAR}),
    "kimi_linear": (
        "kimi_linear",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "moe_intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": [*["linear_attention"] * 3, "full_attention"],
            "mlp_layer_types": ["dense", *["sparse"] * 3],
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "routed_scaling_factor": 2.0,
        },
    ),
    "jamba-third": (
        "jamba",
        {**_JAMBA, "attn_layer_period": 3, "attn_layer_offset": 1},
    ),
    "longcat_flash": (
        "longcat_flash",
        {
            **rotation(5000.0),
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 16,
            "head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "expert_ffn_hidden_size": 48,
            "routed_scaling_factor": 2.0,
        },
    ),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        nested(
            {
                **TEXT,
                **EXPERTS,
                **rotation(5000.0, mrope_section=[8, 4, 4], mrope_interleaved=True),
                "head_dim": 32,
            },
            {**DEEP, "deepstack_visual_indexes": [0]},
        ),
    ),
    "lfm2_vl": (
        "lfm2_vl",
        nested(
            {
                **TEXT,
                **rotation(5000.0),
                "model_type": "lfm2",
                "layer_types": ["conv", "full_attention"] * 2,
                "block_auto_adjust_ff_dim": False,
                "block_ff_dim": 96,
            },
            {**PICTURES, "num_patches": 16, "patch_size": 4},
        ),
    ),
    "apertus": ("apertus", rotation(5000.0)),
    "afmoe": (
        "afmoe",
        {
            **rotation(5000.0),
            **HEADS,
            **EXPERTS,
            **ALTERNATE,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "mup_enabled": True,
        },
    ),
    "phimoe": (
        "phimoe",
        {
            **rotation(5000.0),
            "num_local_experts": 4,
            "attention_bias": True,
            "lm_head_bias": True,
        },
    ),
    "mamba": (
        "mamba",
        {"state_size": 8, "time_step_rank": 8, "tie_word_embeddings": True},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **rotation(10000.0, partial_rotary_factor=0.5),
            "num_key_value_heads": 1,
            "attention_window_size": 16,
            "lru_width": 64,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_bigcode": (
        "gpt_bigcode",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96},
    ),
    "internlm3": ("internlm3", {**rotation(5000.0), **HEADS}),
}
