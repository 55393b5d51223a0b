"""Asks transformers for the logits of tiny models, and stores them for the tests.

    python -m scripts.reference_logits [NAME ...]

Run it where transformers and torch are installed; rvllm_local need not be. A reference
holds the configuration as transformers saves it, the names and shapes of the published
tensors, and a few logits. The weights follow from the names (`named_weights`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.named_weights import named_weights

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "references"
TOKENS = [(7 * place * place + 3 * place + 5) % 125 + 3 for place in range(48)]
POSITIONS = (15, 31, 47)
KEPT = 12  # logits a position

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
    "mixtral": ("mixtral", {**rotation(5000.0), "num_local_experts": 4}),
    "qwen2": ("qwen2", rotation(5000.0)),
    "qwen2-yarn": ("qwen2", rotation(5000.0, "yarn", **YARN)),
    "qwen2_moe": (
        "qwen2_moe",
        {**rotation(5000.0), **EXPERTS, "shared_expert_intermediate_size": 48},
    ),
    "qwen3": ("qwen3", {**rotation(5000.0), "head_dim": 32}),
    "qwen3-yarn": ("qwen3", {**rotation(5000.0, "yarn", **YARN), "head_dim": 32}),
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
            "sliding_window": 64,
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
    "phi3": ("phi3", rotation(5000.0, partial_rotary_factor=0.5)),
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
    "starcoder2": ("starcoder2", rotation(5000.0)),
    "stablelm": ("stablelm", rotation(5000.0, partial_rotary_factor=0.25)),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **rotation(5000.0),
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 48,
        },
    ),
    "glm4": (
        "glm4",
        {**rotation(5000.0, partial_rotary_factor=0.5), "head_dim": 32},
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **rotation(5000.0, partial_rotary_factor=0.5),
            "head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 48,
        },
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
    "olmoe": ("olmoe", {**rotation(5000.0), **EXPERTS}),
    "helium": ("helium", {**rotation(5000.0), **HEADS}),
    "lfm2": (
        "lfm2",
        {
            **rotation(5000.0),
            "layer_types": ["conv", "full_attention"] * 2,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
    ),
}


def reference(name: str) -> dict[str, Any]:
    """One model's configuration, tensors and logits."""
    model_type, options = MODELS[name]
    config = CONFIG_MAPPING[model_type](**{**BASE, **options})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        tensors = {key: _row(value) for key, value in load_file(path).items()}
        save_file(named_weights(tensors), path, metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        text = (Path(folder) / "config.json").read_text(encoding="utf-8")
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].double().numpy()
    kept = {}
    for position in POSITIONS:
        kept[str(position)] = [float(f"{x:.6g}") for x in logits[position, :KEPT]]
    return {
        "transformers": transformers.__version__,
        "config": json.loads(text),
        "tensors": tensors,
        "tokens": TOKENS,
        "logits": kept,
    }


def _row(value: np.ndarray[Any, Any]) -> list[Any]:
    """A tensor's shape, and what its values are near if it is a vector."""
    if value.ndim >= 2:
        return [list(value.shape), None]
    if value.size and (value == value.flat[0]).all():
        return [list(value.shape), float(value.flat[0])]
    return [list(value.shape), [float(f"{x:.6g}") for x in value.reshape(-1)]]


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or MODELS:
        text = json.dumps(reference(name), separators=(",", ":"), sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, len(text))


if __name__ == "__main__":
    main(sys.argv[1:])
