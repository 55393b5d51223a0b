"""Matrices of 8-bit floats (e4m3) as the numbers that they stand for.

A code times a scale is a weight. A scale belongs to the whole matrix, to a row, or to a
block of rows and columns; `X_scale_inv` and `X_scale` are two names for it, and both are
multiplied with. Scales that are bytes are powers of two (e8m0). Scales of activations and of keys and values are for products of 8-bit
floats, which are not made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from rvllm_local.errors import ModelFileError, UnsupportedModelError

Weights = dict[str, mx.array]

_METHODS = ("fp8", "fbgemm_fp8")
_E8M0_BIAS = 127
_USUAL_BLOCK = 128  # where a configuration names none; the default of transformers
_OF_WEIGHTS = ("_scale_inv", "_scale")
OF_ACTIVATIONS = (
    ".input_scale",
    ".input_scale_inv",
    ".input_scale_ub",
    ".input_global_scale",
    ".activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
)


def is_float8(config: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is of 8-bit floats.

    Raises `UnsupportedModelError` for another kind of them than e4m3.
    """
    method = config.get("quant_method")
    if method not in _METHODS:
        return False
    kind = str(config.get("fmt") or "e4m3").lower()
    if not kind.startswith("e4m3"):
        raise UnsupportedModelError(
            f"the model's quantization {method!r} has floats of the kind {kind!r:.40}, "
            "and e4m3 is read here; take a conversion to MLX"
        )
    return True


def as_floats(weights: Weights, dtype: mx.Dtype | None, block: Any = None) -> Weights:
    """The weights without codes: each has become a float of `dtype`, bfloat16 with None.

    `block` is the configuration's `[rows, columns]` of a scale, if it names them. A
    product is rounded once, from float32. Raises `ModelFileError` for a code without a
    scale, and for scales that do not fit.
    """
    floats: Weights = {}
    scales = _scales(weights)
    used = set(scales.values())
    for name, value in weights.items():
        if name in used or name.endswith(OF_ACTIVATIONS):
            continue
        if name in scales:
            scale = weights[scales[name]]
            floats[name] = _numbers(name, value, scale, block, dtype or mx.bfloat16)
        else:
            floats[name] = value
    return floats


def _scales(weights: Weights) -> dict[str, str]:
    """The scale of each matrix of codes, by names."""
    scales: dict[str, str] = {}
    for name, value in weights.items():
        if value.dtype != mx.uint8 or _is_scale(name, weights):
            continue
        for suffix in _OF_WEIGHTS:
            if f"{name}{suffix}" in weights:
                scales[name] = f"{name}{suffix}"
                break
        else:
            raise ModelFileError(
                f"{name} holds 8-bit floats, and there is no {name}_scale_inv or "
                f"{name}_scale beside it"
            )
    return scales


def _is_scale(name: str, weights: Weights) -> bool:
    """Bytes may be scales, too: of activations, or of codes beside them."""
    if name.endswith(OF_ACTIVATIONS):
        return True
    for suffix in _OF_WEIGHTS:
        codes = name.removesuffix(suffix)
        if codes != name and codes in weights:
            return True
    return False


def _factors(scale: mx.array) -> mx.array:
    if scale.dtype != mx.uint8:
        return scale.astype(mx.float32)
    exponents = scale.astype(mx.float32) - _E8M0_BIAS
    return mx.power(2.0, exponents)


def _numbers(
    name: str,
    codes: mx.array,
    scale: mx.array,
    block: Any,
    dtype: mx.Dtype,
) -> mx.array:
    values = mx.from_fp8(codes, dtype=mx.float32)
    factors = _factors(scale)
    if scale.ndim == 2 * codes.ndim and scale.size == math.prod(scale.shape[::2]):
        factors = factors.reshape(scale.shape[::2])  # ModelOpt's blocks of blocks
    if scale.size == 1:
        factors = factors.reshape(-1)
    else:
        if factors.ndim == codes.ndim - 1:
            factors = factors[..., None]
        if factors.ndim != codes.ndim:
            raise _misfit(name, codes, scale)
        for axis in range(codes.ndim):
            wide = _repeated(factors, axis, codes.shape, block)
            if wide is None:
                raise _misfit(name, codes, scale)
            factors = wide
    product = values * factors
    return product.astype(dtype)


def _repeated(
    factors: mx.array,
    axis: int,
    shape: tuple[int, ...],
    block: Any,
) -> mx.array | None:
    """A factor for each place along an axis; None where blocks do not fit its size."""
    size = shape[axis]
    count = factors.shape[axis]
    if count in (1, size):
        return factors
    from_end = axis - len(shape)
    length = _block_length(from_end, size, count, block)
    if length is None:
        return None
    repeated = mx.repeat(factors, length, axis=axis)
    places = mx.arange(size)
    return mx.take(repeated, places, axis=axis)


def _block_length(from_end: int, size: int, count: int, block: Any) -> int | None:
    """The length of a block along the last axis (-1) or the one before; None if none fits."""
    stated = None
    names_both = isinstance(block, list | tuple) and len(block) == 2
    if names_both and from_end >= -2:
        stated = block[from_end]
    if type(stated) is int and stated > 0:
        needed = -(-size // stated)
        return stated if needed == count else None
    if -(-size // _USUAL_BLOCK) == count:
        return _USUAL_BLOCK
    length, rest = divmod(size, count)
    return None if rest else length


def _misfit(name: str, codes: mx.array, scale: mx.array) -> ModelFileError:
    return ModelFileError(
        f"{name}: 8-bit floats {list(codes.shape)} and scales {list(scale.shape)} do "
        "not go together"
    )
