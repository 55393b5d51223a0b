"""Matrices of 4-bit floats (e2m1) in groups of 16, NVFP4, as the numbers that they stand for.

A weight is a code times an 8-bit scale of its group and a scale of the whole matrix.
compressed-tensors names them `weight_packed`, `weight_scale` and `weight_global_scale`,
and divides by the last; ModelOpt has `weight`, `weight_scale` and `weight_scale_2`, and
multiplies. MLX's own NVFP4 has no scale of a whole matrix in its products.
"""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.errors import ModelFileError, UnsupportedModelError

Weights = dict[str, mx.array]

_BEFORE_INPUTS = ".pre_quant_scale"
GROUP = 16  # inputs of a scale
_SIZES = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)
_OF_PARTS = (
    ".weight",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
)


def as_floats(weights: Weights, dtype: mx.Dtype | None) -> Weights:
    """The weights without 4-bit codes: each has become a float of `dtype`, bfloat16 with None.

    A product is rounded once, from float32. Raises `ModelFileError` for parts that are
    missing or do not fit, and `UnsupportedModelError` for inputs that are scaled first.
    """
    floats = dict(weights)
    for name in weights:
        if name.endswith(_BEFORE_INPUTS):
            raise UnsupportedModelError(
                f"{name} scales a layer's inputs, as ModelOpt's AWQ has it, which is "
                "not computed here; take a conversion to MLX, or another packing"
            )
    for layer in _layers(weights):
        for part in _OF_PARTS:
            floats.pop(f"{layer}{part}", None)
        numbers = _numbers(layer, weights)
        floats[f"{layer}.weight"] = numbers.astype(dtype or mx.bfloat16)
    return floats


def _layers(weights: Weights) -> list[str]:
    """Layers of 4-bit codes; others may be in 8 bits."""
    layers = []
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        is_modelopts = part == "weight" and f"{layer}.weight_scale_2" in weights
        if value.dtype == mx.uint8 and (part == "weight_packed" or is_modelopts):
            layers.append(layer)
    return layers


def _numbers(layer: str, weights: Weights) -> mx.array:
    codes = _part(layer, weights, "weight_packed", "weight")
    scales = _part(layer, weights, "weight_scale")
    factor = _part(layer, weights, "weight_scale_2", "weight_global_scale")
    factor = factor.astype(mx.float32)
    if f"{layer}.weight_global_scale" in weights:
        factor = 1 / factor
    rows = codes.shape[:-1]
    groups, rest = divmod(2 * codes.shape[-1], GROUP)
    fits = scales.shape == (*rows, groups) and factor.size == 1
    if rest or not fits or scales.dtype != mx.uint8:
        raise ModelFileError(
            f"{layer}: 4-bit floats {list(codes.shape)}, scales {list(scales.shape)} "
            f"and {list(factor.shape)} do not go together"
        )
    of_groups = mx.from_fp8(scales, dtype=mx.float32)
    of_groups *= factor.reshape(())
    wide = mx.repeat(of_groups, GROUP, axis=-1)
    return _values(codes) * wide


def _part(layer: str, weights: Weights, *names: str) -> mx.array:
    """The first of these parts that is there."""
    for name in names:
        if f"{layer}.{name}" in weights:
            return weights[f"{layer}.{name}"]
    raise ModelFileError(
        f"{layer}: 4-bit floats have no {' or '.join(names)} beside them"
    )


def _values(codes: mx.array) -> mx.array:
    """`[..., inputs]` of bytes that hold two codes each, the lower bits first."""
    sizes = mx.array(_SIZES)
    values = mx.concatenate([sizes, -sizes])
    low = codes & 15
    high = codes >> 4
    pairs = mx.stack([low, high], axis=-1)
    in_order = pairs.flatten(-2)
    return values[in_order]
