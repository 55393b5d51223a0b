"""The keys and tensors of a GGUF file that scale positions, as a configuration has them.

Where a file leaves a key out, the value is the one that llama.cpp's loader takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.keys import Keys

_PLAIN_ROPE = (None, "none")
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3_FAMILIES = ("llama", "llama4")
# Where the short wavelengths end: Llama 4's definition has no smooth part.
_HIGH_FREQUENCIES = (4.0, 1.0)


def rotation_settings(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    """The scaling of positions.

    Raises `UnsupportedModelError` for what mlx-lm would not compute in the same way, and
    `ModelFileError` for factors of two kinds.
    """
    # llama.cpp takes a factor without a type for a linear one.
    kind = keys.get("rope.scaling.type")
    if kind not in (*_PLAIN_ROPE, "linear", "longrope", "yarn"):
        raise UnsupportedModelError(
            f"{keys.path}: RoPE scaling {kind!r:.80} in a GGUF file is not supported"
        )
    factor = _scaling_factor(keys)
    tensors = keys.file.tensors
    if config["model_type"] == "gemma4_text":
        return {}  # its family reads them
    if "rope_freqs.weight" in tensors:
        if kind != "none" and factor != 1.0:
            raise ModelFileError(
                f"{keys.path}: key 'rope.scaling.factor' is {factor:g}, and tensor "
                "'rope_freqs.weight' scales positions as well: they contradict each "
                "other"
            )
        return {"rope_scaling": _llama3_scaling(keys, config)}
    if "rope_factors_long.weight" in tensors or "rope_factors_short.weight" in tensors:
        return _longrope(keys, config)
    if kind == "longrope":
        raise ModelFileError(
            f"{keys.path}: RoPE scaling is 'longrope', but its factors are missing"
        )
    if kind == "none" or factor == 1.0:
        _refuse_attention_factor(keys)
        return {}
    if kind == "yarn":
        return {"rope_scaling": _yarn(keys, config, factor)}
    _refuse_attention_factor(keys)
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
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}") is not None:
            scaling[name] = keys.positive(f"rope.scaling.yarn_{name}")
    mixed = keys.get("rope.scaling.yarn_ext_factor")
    if mixed is not None and mixed >= 0 and mixed != 1:
        raise UnsupportedModelError(
            f"{keys.path}: key 'rope.scaling.yarn_ext_factor' is {mixed!r:.40}, and only "
            "1 is supported"
        )
    if config["model_type"] == "ministral3":
        return scaling  # whose factors cancel each other out
    beside_yarn = _attention_factor(keys)
    if beside_yarn != 1.0:
        scaling["attention_factor"] = beside_yarn * (0.1 * math.log(factor) + 1.0)
    return scaling


def _attention_factor(keys: Keys) -> float:
    """What rotated queries and keys are multiplied by."""
    factor = 1.0
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        if keys.get(key):
            factor *= keys.positive(key)
    return factor


def _refuse_attention_factor(keys: Keys) -> None:
    factor = _attention_factor(keys)
    if factor != 1.0:
        raise UnsupportedModelError(
            f"{keys.path}: key 'rope.scaling.attn_factor' is {factor:g} without scaled "
            "positions, which is not supported; use safetensors"
        )


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
    original = keys.integer(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    scaling = {
        "type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "attention_factor": _attention_factor(keys),
        "original_max_position_embeddings": original,
    }
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


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
