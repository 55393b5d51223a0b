"""llama.cpp's deepseek2 with experts that are chosen by sigmoid: GLM 4.7 Flash and others.

Attention goes over latents. The definition that takes its rests of norms from the
configuration is glm4_moe_lite, and a file has one for all norms.
"""

from __future__ import annotations

from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.keys import Keys


def latent_config(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of latents and experts.

    Raises `UnsupportedModelError` for softmax scores (DeepSeek V2), scaled positions
    (DeepSeek V3) and files of converters that did not part keys and values.
    """
    _refuse(keys, config)
    head_dim = keys.integer("attention.key_length_mla")
    rotated = keys.integer("rope.dimension_count")
    rank = keys.integer("attention.kv_lora_rank")
    _check_sizes(keys, head_dim, rotated, rank)
    settings = {
        **config,
        "attention_bias": "blk.0.attn_kv_a_mqa.bias" in keys.file.tensors,
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0),
        "kv_lora_rank": rank,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "moe_layer_freq": 1,
        "n_group": keys.whole("expert_group_count", 1) or 1,
        "n_routed_experts": keys.integer("expert_count"),
        "n_shared_experts": keys.integer("expert_shared_count"),
        "norm_topk_prob": bool(keys.get("expert_weights_norm")),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": keys.whole("attention.q_lora_rank", 0) or None,
        "qk_nope_head_dim": head_dim - rotated,
        "qk_rope_head_dim": rotated,
        "routed_scaling_factor": keys.factor("expert_weights_scale", 1.0),
        "topk_group": keys.whole("expert_group_used_count", 1) or 1,
        "v_head_dim": keys.integer("attention.value_length_mla"),
    }
    del settings["head_dim"]  # that of latents, of which a head is made
    return settings


def _refuse(keys: Keys, config: dict[str, Any]) -> None:
    keys.require_sigmoid()
    if config.get("rope_scaling"):
        raise UnsupportedModelError(
            f"{keys.path}: scaled positions (key 'deepseek2.rope.scaling.type') are not "
            "supported for deepseek2 in a GGUF file; use safetensors"
        )
    if "blk.0.attn_kv_b.weight" in keys.file.tensors:
        raise UnsupportedModelError(
            f"{keys.path}: tensor 'blk.0.attn_kv_b.weight' is of an older converter, which "
            "did not part keys and values; convert the model again"
        )


def _check_sizes(keys: Keys, head_dim: int, rotated: int, rank: int) -> None:
    latent = keys.integer("attention.key_length", rank + rotated)
    if rotated % 2 or rotated >= head_dim or latent != rank + rotated:
        raise ModelFileError(
            f"{keys.path}: heads of {head_dim} with {rotated} rotated dimensions do not "
            f"go with latents of {latent}, of which {rank} are not rotated"
        )
