"""Quantizations of other tools: which are read here, and what becomes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from rvllm_local.models import (
    awq_gptq,
    compressed_tensors,
    float4,
    float8,
    mx_packed,
)
from rvllm_local.models.packing_faults import unsupported

Weights = dict[str, mx.array]

_MODELOPT = ("modelopt", "modelopt_fp4")
_MXFP8 = "MXFP8"
_WEIGHTS_ONLY = "FP8_PB_WO"
_ALSO_WEIGHTS_ONLY = "W4A16_NVFP4"
_FLOATS_OF_MODELOPT = ("FP8", _WEIGHTS_ONLY, _MXFP8, "NVFP4", _ALSO_WEIGHTS_ONLY)
_MIXED = "MIXED_PRECISION"


def becomes_floats(config: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is of 8- or 4-bit floats, which become wider ones.

    Raises `ModelFileError` and `UnsupportedModelError`, as all here does.
    """
    method = config.get("quant_method")
    if method == compressed_tensors.METHOD:
        return compressed_tensors.becomes_floats(config)
    if _is_modelopts_mx(config):
        return False
    if method in _MODELOPT:
        for algorithm in _algorithms(config):
            if algorithm not in _FLOATS_OF_MODELOPT:
                raise unsupported(str(method), f"has the algorithm {algorithm!r:.40}")
        return True
    return float8.is_float8(config)


def _is_modelopts_mx(config: Mapping[str, Any]) -> bool:
    """Whether ModelOpt packed all layers as MLX has them, too."""
    if config.get("quant_method") not in _MODELOPT:
        return False
    algorithm = config.get("quant_algo")
    return bool(algorithm == _MXFP8)


def _algorithms(config: Mapping[str, Any]) -> list[Any]:
    """ModelOpt's ways of packing: one for all layers, or those of the layers."""
    algorithm = config.get("quant_algo")
    layers = config.get("quantized_layers")
    if algorithm != _MIXED or not isinstance(layers, Mapping):
        return [algorithm]
    algorithms = []
    for settings in layers.values():
        algorithm = None
        if isinstance(settings, Mapping):
            algorithm = settings.get("quant_algo")
        algorithms.append(algorithm)
    return algorithms


def may_widen(config: Mapping[str, Any]) -> bool:
    """Whether loading makes floats of packed weights, of all or of some."""
    method = config.get("quant_method")
    if method == awq_gptq.GPTQ and awq_gptq.reorders_inputs(config):
        return True
    if method == compressed_tensors.METHOD and compressed_tensors.reorders_inputs(
        config
    ):
        return True
    return becomes_floats(config)


def packed_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bits and group size of what stays packed, for MLX; None for what is not read here."""
    method = config.get("quant_method")
    if method in awq_gptq.METHODS:
        return awq_gptq.packed_settings(config)
    if method == compressed_tensors.METHOD:
        return compressed_tensors.packed_settings(config)
    if _is_modelopts_mx(config):
        return mx_packed.SETTINGS[8]
    return None


def as_mlx_holds(
    config: Mapping[str, Any], weights: Weights, dtype: mx.Dtype | None
) -> Weights:
    """The weights with packed layers in MLX's form, or as floats.

    Scales, offsets and floats are of `dtype`; with None they are of the type that the
    file has for scales, and floats are bfloat16.
    """
    if becomes_floats(config):
        weights = float4.as_floats(weights, dtype)
        return float8.as_floats(weights, dtype, _block(config))
    if config.get("quant_method") == compressed_tensors.METHOD:
        return compressed_tensors.as_mlx_packs(config, weights, dtype)
    if _is_modelopts_mx(config):
        return mx_packed.as_mlx_packs(weights)
    return awq_gptq.as_affine(config, weights, dtype)


def _block(config: Mapping[str, Any]) -> Any:
    """`[rows, columns]` of a scale, if a configuration names them."""
    if config.get("quant_method") == compressed_tensors.METHOD:
        return compressed_tensors.block_of(config)
    return config.get("weight_block_size")


def _rounds(config: Mapping[str, Any]) -> bool:
    """Whether ModelOpt's way of packing has activations rounded."""
    return config.get("quant_algo") not in (_WEIGHTS_ONLY, _ALSO_WEIGHTS_ONLY)


def activation_rounding(config: Mapping[str, Any]) -> str | None:
    """How a `quantization_config` has activations rounded, which is not done here."""
    method = config.get("quant_method")
    if method == compressed_tensors.METHOD:
        return compressed_tensors.activation_rounding(config)
    if method in _MODELOPT and _rounds(config):
        return f"quant_algo {config.get('quant_algo')}"
    scheme = config.get("activation_scheme")
    return None if scheme is None else f"activation_scheme {scheme!r:.40}"
