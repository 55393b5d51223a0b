"""What a GGUF file of the llama architecture means in mlx-lm's terms: its configuration and its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf import FloatArray, GGUFFile
from rvllm_local.models.gguf_mlx import repack

Rows = npt.NDArray[Any]  # anything whose first axis is a weight's output rows

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
            f"{file.path}: GGUF architecture {architecture!r} is not supported, only 'llama'; use safetensors"
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
        "head_dim": _integer(file, "llama.attention.key_length", hidden // heads),
        "rms_norm_eps": _positive(file, "llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocabulary(file),
        "rope_theta": _positive(file, "llama.rope.freq_base", 10000.0),
        "max_position_embeddings": _integer(file, "llama.context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    _check_heads(file, config)
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise UnsupportedModelError(f"{file.path}: RoPE scaling in a GGUF file is not supported; use safetensors")
    return config


def gguf_weights(file: GGUFFile, config: dict[str, Any]) -> Iterator[tuple[str, FloatArray]]:
    """Each weight under mlx-lm's name, one at a time, as float32."""
    for name in file.tensors:
        yield _mlx_name(file, name), _ordered(file, name, file.read(name), config)


def gguf_packed_weights(file: GGUFFile, config: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Like `gguf_weights` for a GPU: quantized matrices as MLX packs them, all else as float16."""
    for name, info in file.tensors.items():
        mlx_name = _mlx_name(file, name)
        packed = repack(file.read_blocks(name), info.format.name, info.shape) if len(info.shape) == 2 else None
        if packed is None:
            yield mlx_name, _ordered(file, name, file.read(name), config).astype(np.float16)
            continue
        stem = mlx_name.removesuffix(".weight")
        for part in ("weight", "scales", "biases"):
            yield f"{stem}.{part}", _ordered(file, name, getattr(packed, part), config)


def _mlx_name(file: GGUFFile, name: str) -> str:
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        if part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
    elif (found := re.fullmatch(r"(\w+)\.(weight|bias)", name)) and found[1] in _TOP:
        return f"{_TOP[found[1]]}.{found[2]}"
    raise UnsupportedModelError(f"{file.path}: tensor {name!r} has no place in a llama model")


def _ordered(file: GGUFFile, name: str, weight: Rows, config: dict[str, Any]) -> Rows:
    """Rows in the order that mlx-lm wants."""
    if re.fullmatch(r"blk\.\d+\.attn_q\.(weight|bias)", name):
        return _unpermute(file, name, weight, config["num_attention_heads"])
    if re.fullmatch(r"blk\.\d+\.attn_k\.(weight|bias)", name):
        return _unpermute(file, name, weight, config["num_key_value_heads"])
    return weight


def _unpermute(file: GGUFFile, name: str, weight: Rows, heads: int) -> Rows:
    """Undo the row order that llama.cpp's converter gives queries and keys for its interleaved RoPE."""
    rows = weight.shape[0]
    if rows % (2 * heads):
        raise ModelFileError(f"{file.path}: tensor {name!r} has {rows} rows, which {heads} heads cannot share")
    pairs = weight.reshape(heads, rows // heads // 2, 2, -1)  # [heads, head_dim / 2, 2, columns]
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _check_heads(file: GGUFFile, config: dict[str, Any]) -> None:
    heads, kv_heads, head_dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if heads % kv_heads or head_dim % 2:
        raise ModelFileError(f"{file.path}: {heads} heads of {head_dim} cannot share {kv_heads} key heads")
    rotated = _integer(file, "llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise UnsupportedModelError(f"{file.path}: RoPE over {rotated} of {head_dim} dimensions is not supported")


def _required(file: GGUFFile, key: str) -> Any:
    if key not in file.metadata:
        raise ModelFileError(f"{file.path}: key {key!r} is missing")
    return file.metadata[key]


def _integer(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = _required(file, key) if default is None else file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ModelFileError(f"{file.path}: key {key!r} is {value!r}, not a plausible number")
    return value


def _positive(file: GGUFFile, key: str, default: float | None = None) -> float:
    value = _required(file, key) if default is None else file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelFileError(f"{file.path}: key {key!r} is {value!r}, not a positive number")
    return float(value)


def _vocabulary(file: GGUFFile) -> int:
    tokens = _required(file, "tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelFileError(f"{file.path}: key 'tokenizer.ggml.tokens' is not a list of tokens")
    return len(tokens)
