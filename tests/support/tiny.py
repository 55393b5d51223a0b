"""Tiny, seeded, randomly initialised models of many families, in memory or saved as a model folder.

The weights are large enough for greedy sequences to vary; windows are small enough to matter at 200 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rvllm_local.models.families import build_model

VOCAB_SIZE = 384
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
_WINDOWED = [
    "sliding_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
]
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {
        "num_hidden_layers": 4,
        "layer_types": _WINDOWED,
        "sliding_window": 24,
        "head_dim": 32,
        "tie_word_embeddings": False,
    },
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "gemma": {"head_dim": 32},
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32.0,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "num_hidden_layers": 4,
        "head_dim": 32,
        "query_pre_attn_scalar": 32.0,
        "sliding_window": 32,
        "sliding_window_pattern": 2,
    },
    "gear": {
        "num_hidden_layers": 4,
        "head_dim": 32,
        "sliding_window": 24,
        "layer_types": _WINDOWED,
        "attn_logit_softcapping": 2.0,
    },
    "phi3": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "olmo2": {"tie_word_embeddings": False},
    "gpt_oss": {
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 32,
        "sliding_window": 40,
        "layer_types": _WINDOWED,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "moe_intermediate_size": 48,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
    },
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
}
ARCHITECTURES = tuple(_FAMILIES)


def tiny_config(arch: str) -> dict[str, Any]:
    """A config.json of a few layers for `arch`."""
    return {
        "model_type": arch,
        **_BASE,
        **_FAMILIES[arch],
        "eos_token_id": 0,
        "bos_token_id": 1,
    }


def tiny_model(arch: str, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """A float32 module of `arch` with seeded weights, and its config."""
    config = tiny_config(arch)
    model = build_model(config)
    random = np.random.default_rng(seed)
    weights = [
        (name, mx.array(_values(arch, name, value, random)))
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model, config


def _values(
    arch: str, name: str, value: mx.array, random: np.random.Generator
) -> np.ndarray:
    noise = random.standard_normal(value.shape)
    if name.endswith("norm.weight"):
        noise = (0.0 if "gemma" in arch else 1.0) + 0.2 * noise
    elif value.ndim == 1:  # biases and attention sinks
        noise = 0.3 * noise
    elif "embed_tokens" in name:
        noise = (
            0.04 if "gemma" in arch else 0.7
        ) * noise  # gemma scales by sqrt(hidden)
    else:
        noise = noise * (1.6 / np.sqrt(value.shape[-1]))
    return noise.astype(np.float32)


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE over the 256 bytes and a few merges, after the special tokens; fills the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = [
        ("t", "h"),
        ("Ġ", "th"),
        ("Ġth", "e"),
        ("i", "n"),
        ("e", "r"),
        ("Ġ", "a"),
    ]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    vocab = {token: index + len(SPECIAL_TOKENS) for index, token in enumerate(tokens)}
    vocab.update({token: index for index, token in enumerate(SPECIAL_TOKENS)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def save_tiny(arch: str, folder: Path, seed: int = 0, bits: int | None = None) -> Path:
    """Write a complete model folder: config, weights, tokenizer and chat template. Returns the folder.

    With `bits` the weights are bfloat16 and quantized in groups of 32.
    """
    model, config = tiny_model(arch, seed)
    if bits is not None:
        plan = {"group_size": 32, "bits": bits}
        model.set_dtype(mx.bfloat16)
        nn.quantize(model, **plan)
        config["quantization"] = plan
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of the tiny tokenizer."""
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[0],
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings), encoding="utf-8"
    )
