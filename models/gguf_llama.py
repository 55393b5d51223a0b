"""What a GGUF file of the llama architecture means in mlx-lm's terms: its configuration and its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf import FloatArray, GGUFFile

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration, as config.json would have it. Raises for other architectures and missing keys."""
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(
            f"{file.path}: GGUF architecture {architecture!r} is not supported (only 'llama'); use the safetensors model"
        )
    heads = _integer(file, "llama.attention.head_count")
    hidden = _integer(file, "llama.embedding_length")
    if hidden % heads:
        raise ModelFileError(f"{file.path}: {heads} heads do not divide a width of {hidden}")
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": _integer(file, "llama.block_count"),
        "intermediate_size": _integer(file, "llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(file, "llama.attention.head_count_kv"),
        "rms_norm_eps": float(_required(file, "llama.attention.layer_norm_rms_epsilon")),
        "vocab_size": len(_required(file, "tokenizer.ggml.tokens")),
        "rope_theta": float(file.metadata.get("llama.rope.freq_base", 10000.0)),
        "max_position_embeddings": _integer(file, "llama.context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise UnsupportedModelError(f"{file.path}: RoPE scaling in a GGUF file is not supported; use the safetensors model")
    return config


def gguf_weights(file: GGUFFile, config: dict[str, Any]) -> Iterator[tuple[str, FloatArray]]:
    """Each weight under mlx-lm's name, one at a time, as float32."""
    for name in file.tensors:
        weight = file.read(name)
        if re.fullmatch(r"blk\.\d+\.attn_q\.weight", name):
            weight = _unpermute(weight, config["num_attention_heads"])
        elif re.fullmatch(r"blk\.\d+\.attn_k\.weight", name):
            weight = _unpermute(weight, config["num_key_value_heads"])
        yield _mlx_name(file, name), weight


def _mlx_name(file: GGUFFile, name: str) -> str:
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        if part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
    elif (found := re.fullmatch(r"(\w+)\.(weight|bias)", name)) and found[1] in _TOP:
        return f"{_TOP[found[1]]}.{found[2]}"
    raise UnsupportedModelError(f"{file.path}: tensor {name!r} has no place in a llama model")


def _unpermute(weight: FloatArray, heads: int) -> FloatArray:
    """Undo the row order that llama.cpp's converter gives queries and keys for its interleaved RoPE."""
    rows, columns = weight.shape
    return np.ascontiguousarray(
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _required(file: GGUFFile, key: str) -> Any:
    if key not in file.metadata:
        raise ModelFileError(f"{file.path}: key {key!r} is missing")
    return file.metadata[key]


def _integer(file: GGUFFile, key: str) -> int:
    value = _required(file, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ModelFileError(f"{file.path}: key {key!r} is {value!r}, not a plausible number")
    return value
