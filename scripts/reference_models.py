"""The tiny models whose logits `reference_logits` asks for: names and sizes."""

from __future__ import annotations

from typing import Any

# Tiny, and unlike any default: a value that is not read shows.
BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
HEADS = {"head_dim": 16}
# Attention over latent keys and values.
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
# Experts of one group.
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 48,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def rotation(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def by_layer(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "full_attention": full["rope_parameters"],
            "sliding_attention": sliding["rope_parameters"],
        }
    }


ALTERNATE = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 24,
}
# Three windowed layers, then a full one.
FOURTH = {
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "sliding_window": 24,
}
LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", rotation(5000.0)),
    "llama-linear": ("llama", rotation(5000.0, "linear", factor=3.0)),
    "llama-llama3": ("llama", rotation(5000.0, "llama3", **LLAMA3)),
    "llama-yarn": ("llama", rotation(5000.0, "yarn", **YARN)),
    "mistral": ("mistral", {**rotation(5000.0), **HEADS, "sliding_window": None}),
    "mistral-window": ("mistral", {**rotation(5000.0), **HEADS, "sliding_window": 24}),
    "qwen2": ("qwen2", rotation(5000.0)),
    "qwen2-window": (
        "qwen2",
        {
            **rotation(5000.0),
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
        },
    ),
    "qwen2-yarn": ("qwen2", rotation(5000.0, "yarn", **YARN)),
    "qwen3": ("qwen3", {**rotation(5000.0), "head_dim": 32}),
    "qwen3-yarn": ("qwen3", {**rotation(5000.0, "yarn", **YARN), "head_dim": 32}),
    "gemma": (
        "gemma",
        {**rotation(5000.0), "head_dim": 32, "tie_word_embeddings": True},
    ),
    "gemma2": (
        "gemma2",
        {
            **rotation(5000.0),
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **by_layer(rotation(50000.0), rotation(5000.0)),
            **FOURTH,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3_text-linear": (
        "gemma3_text",
        {
            **by_layer(rotation(50000.0, "linear", factor=8.0), rotation(5000.0)),
            **FOURTH,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
        },
    ),
    "phi": ("phi", rotation(5000.0, partial_rotary_factor=0.25)),
    "phi3-longrope": (
        "phi3",
        {
            **rotation(
                5000.0,
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[2.0 + 0.3 * pair for pair in range(8)],
                original_max_position_embeddings=32,
            ),
            "original_max_position_embeddings": 32,
            "sliding_window": 16,
        },
    ),
    "phi3": ("phi3", rotation(5000.0, partial_rotary_factor=0.5)),
    "olmo2": ("olmo2", rotation(5000.0)),
    "olmo3": ("olmo3", {**by_layer(rotation(5000.0), rotation(5000.0)), **FOURTH}),
    "olmo3-yarn": (
        "olmo3",
        {**by_layer(rotation(5000.0, "yarn", **YARN), rotation(5000.0)), **FOURTH},
    ),
    "granite": (
        "granite",
        {
            **rotation(5000.0),
            "attention_multiplier": 0.2,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 3.0,
        },
    ),
    "cohere": ("cohere", {**rotation(5000.0), "tie_word_embeddings": True}),
    "cohere2": (
        "cohere2",
        {**rotation(5000.0), **FOURTH, **HEADS, "tie_word_embeddings": True},
    ),
    "starcoder2": ("starcoder2", {**rotation(5000.0), "sliding_window": 16}),
    "stablelm": ("stablelm", rotation(5000.0, partial_rotary_factor=0.25)),
    "glm4": (
        "glm4",
        {**rotation(5000.0, partial_rotary_factor=0.5), "head_dim": 32},
    ),
    "smollm3": (
        "smollm3",
        {**rotation(5000.0), "no_rope_layers": [1, 1, 1, 0]},
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            **rotation(5000.0, partial_rotary_factor=0.25),
            "intermediate_size": 256,
        },
    ),
    "exaone4": ("exaone4", {**rotation(5000.0), **FOURTH}),
    "ernie4_5": ("ernie4_5", {**rotation(5000.0), "head_dim": 32}),
    "seed_oss": ("seed_oss", {**rotation(5000.0), "head_dim": 32}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**rotation(5000.0), "head_dim": 32}),
    "nemotron": ("nemotron", rotation(5000.0, partial_rotary_factor=0.5)),
    "helium": ("helium", {**rotation(5000.0), **HEADS}),
    "ministral3": (
        "ministral3",
        {
            **rotation(
                5000.0,
                "yarn",
                **YARN,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
            **HEADS,
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 256,
            "tie_word_embeddings": True,
        },
    ),
    "youtu": (
        "youtu",
        {
            **rotation(5000.0),
            **LATENT,
        },
    ),
    "glm": (
        "glm",
        {**rotation(5000.0, partial_rotary_factor=0.5), "head_dim": 32},
    ),
}
