"""The tiny models that are a part of a larger one: nested configurations.

Each has towers for pictures of one layer, whose tensors a text model leaves out.
"""

from __future__ import annotations

from typing import Any

from scripts.reference_models import (
    BASE,
    EXPERTS,
    FOURTH,
    HEADS,
    YARN,
    by_layer,
    rotation,
)

TEXT = {name: value for name, value in BASE.items() if name != "tie_word_embeddings"}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
_PROPORTIONAL = rotation(50000.0, "proportional", partial_rotary_factor=0.25)
_GEMMA4 = {
    **TEXT,
    **by_layer(_PROPORTIONAL, rotation(5000.0)),
    **FOURTH,
    **HEADS,
    "global_head_dim": 32,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
}
PICTURES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
DEEP = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}


def nested(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision, **more}


NESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4": (
        "gemma4",
        nested(_GEMMA4, {**PICTURES, "num_key_value_heads": 2, "head_dim": 16}),
    ),
    "gemma4-shared": (
        "gemma4",
        nested(
            {
                **_GEMMA4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 24,
                "vocab_size_per_layer_input": 128,
                "final_logit_softcapping": 5.0,
            },
            {**PICTURES, "num_key_value_heads": 2, "head_dim": 16},
        ),
    ),
    "gemma4-moe": (
        "gemma4",
        nested(
            {
                **_GEMMA4,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 48,
            },
            {**PICTURES, "num_key_value_heads": 2, "head_dim": 16},
        ),
    ),
    "gemma3": (
        "gemma3",
        nested(
            {
                **TEXT,
                **by_layer(rotation(50000.0, "linear", factor=8.0), rotation(5000.0)),
                **FOURTH,
                "head_dim": 32,
                "query_pre_attn_scalar": 24,
            },
            {**PICTURES, "image_size": 28, "patch_size": 14},
        ),
    ),
    "qwen3_5": (
        "qwen3_5",
        nested(
            {
                **TEXT,
                **_LINEAR,
                **rotation(5000.0, partial_rotary_factor=0.5),
                "head_dim": 32,
            },
            DEEP,
        ),
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe",
        nested(
            {
                **TEXT,
                **_LINEAR,
                **rotation(5000.0, partial_rotary_factor=0.5),
                **EXPERTS,
                "head_dim": 32,
                "shared_expert_intermediate_size": 48,
            },
            DEEP,
        ),
    ),
    "qwen3_vl": (
        "qwen3_vl",
        nested(
            {
                **TEXT,
                **rotation(5000.0, mrope_section=[8, 4, 4], mrope_interleaved=True),
                "head_dim": 32,
            },
            {**DEEP, "deepstack_visual_indexes": [0]},
        ),
    ),
    "qwen2_vl": (
        "qwen2_vl",
        nested(
            {**TEXT, **rotation(5000.0, mrope_section=[4, 2, 2])},
            {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        ),
    ),
    "mistral3": (
        "mistral3",
        nested(
            {
                "model_type": "mistral",
                **BASE,
                **rotation(5000.0),
                **HEADS,
                "sliding_window": None,
            },
            {
                "model_type": "pixtral",
                **PICTURES,
                "head_dim": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            tie_word_embeddings=False,
        ),
    ),
    "mistral3-ministral3": (
        "mistral3",
        nested(
            {
                "model_type": "ministral3",
                **BASE,
                **rotation(
                    5000.0,
                    "yarn",
                    **YARN,
                    beta_fast=32.0,
                    beta_slow=1.0,
                    mscale=1.0,
                    mscale_all_dim=1.0,
                    llama_4_scaling_beta=0.1,
                    max_position_embeddings=256,
                ),
                **HEADS,
                "sliding_window": None,
                "tie_word_embeddings": True,
            },
            {
                "model_type": "pixtral",
                **PICTURES,
                "head_dim": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            tie_word_embeddings=True,
        ),
    ),
    "llama4": (
        "llama4",
        nested(
            {
                **TEXT,
                **rotation(5000.0),
                **HEADS,
                "intermediate_size_mlp": 112,
                "num_local_experts": 4,
                "interleave_moe_layer_step": 2,
                "attention_chunk_size": 16,
                "floor_scale": 8,
                "attn_scale": 0.3,
            },
            {
                **PICTURES,
                "image_size": 28,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        ),
    ),
}
