"""A GGUF file's keys as the configuration that mlx-lm's model definitions take.

Every key is checked before it is used; what the definitions cannot serve as the file means it is refused by name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.family_keys import family_config
from rvllm_local.models.gguf.keys import Keys
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import Architecture, architecture_of

_PLAIN_ROPE = (None, "none")
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3_FAMILIES = ("llama", "llama4")
# Where the short wavelengths end: Llama 4's definition has no smooth part.
_HIGH_FREQUENCIES = (4.0, 1.0)
_ENDS = (
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "eos_token_ids",
    "eog_token_ids",
)
_NO_TOKEN = (-1, 0xFFFFFFFF)  # how files say that there is none


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration, as config.json would have it. Raises for other architectures and missing keys."""
    architecture = architecture_of(file)
    keys = Keys(file)
    if not architecture.has_experts:
        keys.refuse_experts()
    keys.refuse_parts()
    heads, hidden = (
        keys.integer("attention.head_count"),
        keys.integer("embedding_length"),
    )
    if hidden % heads and keys.get("attention.key_length") is None:
        raise ModelFileError(
            f"{file.path}: {heads} heads do not divide a width of {hidden}"
        )
    config = {
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.integer("block_count"),
        "intermediate_size": keys.integer("feed_forward_length", _ffn_width(file)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": keys.integer("attention.key_length", hidden // heads),
        "rms_norm_eps": keys.positive("attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocabulary(file),
        "rope_theta": keys.positive("rope.freq_base", 10000.0),
        "max_position_embeddings": keys.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": _end_tokens(file),
    }
    _check_heads(file, config)
    config |= _rope(keys, config)
    _check_output(file, architecture)
    return family_config(keys, config)


def _rope(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """The scaling of positions. Raises `UnsupportedModelError` for what mlx-lm would not compute in the same way."""
    # llama.cpp takes a factor without a type for a linear one.
    kind = keys.get("rope.scaling.type")
    if kind not in (*_PLAIN_ROPE, "linear", "longrope", "yarn"):
        raise UnsupportedModelError(
            f"{keys.path}: RoPE scaling {kind!r:.80} in a GGUF file is not supported"
        )
    tensors = keys.file.tensors
    if "rope_freqs.weight" in tensors:
        return {"rope_scaling": _llama3_scaling(keys, config)}
    if "rope_factors_long.weight" in tensors or "rope_factors_short.weight" in tensors:
        return _longrope(keys, config)
    if kind == "longrope":
        raise ModelFileError(
            f"{keys.path}: RoPE scaling is 'longrope', but its factors are missing"
        )
    factor = _scaling_factor(keys)
    if kind == "none" or factor == 1.0:
        return {}
    if kind == "yarn":
        return {"rope_scaling": _yarn(keys, config, factor)}
    return {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": factor}}


def _scaling_factor(keys: Keys) -> float:
    """The factor of positions, under its key or the one of older files; 0 is none."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        value = keys.get(key)
        if value is None:
            continue
        return 1.0 if value == 0 else keys.positive(key)
    return 1.0


def _yarn(keys: Keys, config: dict[str, Any], factor: float) -> dict[str, Any]:
    context: int = config["max_position_embeddings"]
    original = keys.integer("rope.scaling.original_context_length", context)
    scaling = {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if keys.get(f"rope.scaling.{key}") is not None:
            scaling[name] = keys.positive(f"rope.scaling.{key}")
    return scaling


def _llama3_scaling(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling, found again from the factor of each frequency."""
    if config["model_type"] not in _LLAMA3_FAMILIES:
        raise UnsupportedModelError(
            f"{keys.path}: RoPE factors in a {config['model_type']} model are not supported"
        )
    dim: int = config["head_dim"]
    factors = _factors(keys, "rope_freqs.weight", dim // 2)
    for high in _HIGH_FREQUENCIES:
        scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
        scaling["high_freq_factor"] = high
        expected = _llama3_factors(scaling, config["rope_theta"], dim)
        if np.allclose(factors, expected, rtol=1e-2):
            return scaling
    raise UnsupportedModelError(
        f"{keys.path}: the RoPE factors are not those of Llama 3; use safetensors"
    )


def _llama3_factors(
    scaling: dict[str, Any], base: float, dim: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """The factor of each frequency, as Llama 3's definition gives them."""
    wavelength = 2 * math.pi * base ** (np.arange(0, dim, 2) / dim)
    ratio = scaling["original_max_position_embeddings"] / wavelength
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if high == low:
        smooth = (ratio >= low).astype(np.float64)
    else:
        smooth = np.clip((ratio - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray[Any, np.dtype[Any]] = 1 / (
        (1 - smooth) / scaling["factor"] + smooth
    )
    return factors


def _longrope(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    if config["model_type"] != "phi3":
        raise UnsupportedModelError(
            f"{keys.path}: RoPE factors in a {config['model_type']} model are not supported"
        )
    half = keys.integer("rope.dimension_count", config["head_dim"]) // 2
    long, short = (
        _factors(keys, f"rope_factors_{kind}.weight", half).tolist()
        for kind in ("long", "short")
    )
    return {
        "rope_scaling": {
            "type": "longrope",
            "long_factor": long,
            "short_factor": short,
        },
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", 4096
        ),
    }


def _factors(
    keys: Keys, name: str, count: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    info = keys.file.info(name)
    if info.shape != (count,):
        raise ModelFileError(
            f"{keys.path}: tensor {name!r} has shape {info.shape}, not ({count},)"
        )
    factors = keys.file.read(name)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(
            f"{keys.path}: tensor {name!r} holds factors that are not positive numbers"
        )
    return factors


def _check_output(file: GGUFFile, architecture: Architecture) -> None:
    if architecture.always_tied and "output.weight" in file.tensors:
        raise UnsupportedModelError(
            f"{file.path}: a {architecture.model_type} model with an output matrix of its own"
        )


def _check_heads(file: GGUFFile, config: dict[str, Any]) -> None:
    heads, kv_heads, head_dim = (
        config[key]
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if heads % kv_heads or head_dim % 2:
        raise ModelFileError(
            f"{file.path}: {heads} heads of {head_dim} cannot share {kv_heads} key heads"
        )
    keys = Keys(file)
    value_dim = keys.integer("attention.value_length", head_dim)
    rotated = keys.integer("rope.dimension_count", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: values of {value_dim} beside keys of {head_dim} are not supported"
        )
    if rotated > head_dim or rotated % 2:
        raise ModelFileError(
            f"{file.path}: RoPE over {rotated} of {head_dim} dimensions is not possible"
        )
    if rotated != head_dim and config["model_type"] not in ("phi3", "glm4"):
        raise UnsupportedModelError(
            f"{file.path}: RoPE over {rotated} of {head_dim} dimensions is not supported"
        )


def _ffn_width(file: GGUFFile) -> int | None:
    """The width of the first layer's MLP by its tensor, for files that do not say it."""
    for name in ("blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight"):
        if name in file.tensors:
            return file.tensors[name].shape[-1]
    return None


def _vocabulary(file: GGUFFile) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelFileError(
            f"{file.path}: key 'tokenizer.ggml.tokens' is not a list of tokens"
        )
    return len(tokens)


def _end_tokens(file: GGUFFile) -> list[int]:
    """The ids that end an answer: of the text, and of a turn where the file names one.

    A key may have several. Raises `ModelFileError` for an end that is no token.
    """
    rows = _vocabulary(file)
    ends: dict[int, None] = {}
    for name in _ENDS:
        key = f"tokenizer.ggml.{name}"
        value = file.metadata.get(key)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, bool) or not isinstance(token, int):
                continue
            if token in _NO_TOKEN:
                continue
            if not 0 <= token < rows:
                raise ModelFileError(
                    f"{file.path}: key {key!r} is {token}, which is no token: "
                    f"'tokenizer.ggml.tokens' has {rows}"
                )
            ends[token] = None
    return list(ends)
