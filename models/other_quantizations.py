"""Quantizations of other tools: which are read here, and what becomes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from rvllm_local.models import awq_gptq, compressed_tensors, float8

Weights = dict[str, mx.array]


def becomes_floats(config: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is of 8-bit floats, which become wider ones.

    Raises `ModelFileError` and `UnsupportedModelError`, as all here does.
    """
    if config.get("quant_method") == compressed_tensors.METHOD:
        return compressed_tensors.is_float8(config)
    return float8.is_float8(config)


def packed_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bits and group size of whole numbers, for MLX; None for what is not read here."""
    method = config.get("quant_method")
    if method in awq_gptq.METHODS:
        return awq_gptq.packed_settings(config)
    if method == compressed_tensors.METHOD:
        return compressed_tensors.packed_settings(config)
    return None


def as_mlx_holds(
    config: Mapping[str, Any], weights: Weights, dtype: mx.Dtype | None
) -> Weights:
    """The weights with packed layers in MLX's form, or as floats.

    Scales, offsets and floats are of `dtype`; with None they are of the type that the
    file has for scales, and floats are bfloat16.
    """
    if becomes_floats(config):
        return float8.as_floats(weights, dtype, _block(config))
    if config.get("quant_method") == compressed_tensors.METHOD:
        return compressed_tensors.as_affine(config, weights, dtype)
    return awq_gptq.as_affine(config, weights, dtype)


def _block(config: Mapping[str, Any]) -> Any:
    """`[rows, columns]` of a scale, if a configuration names them."""
    if config.get("quant_method") == compressed_tensors.METHOD:
        return compressed_tensors.block_of(config)
    return config.get("weight_block_size")
