"""Activations on a CPU, by numpy: MLX computes their exponentials one at a time there.

A block of numbers goes through all steps before the next one, so that it stays in the
processor's cache. Results differ from the functions' true values by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Compute = Callable[[_Floats, _Floats, _Floats], None]

_BLOCK = 8192  # numbers
# Beyond these a function is its input, or 0, and its steps would overflow.
_FLAT = np.float32(13.0)
_MOST_EXPONENT = np.float32(87.0)

# erfc(x) = exp(-x^2) * (u * a1 + u^2 * a2 + ...) with u = 1 / (1 + p * x), for x >= 0, to
# 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_ERFC_P = np.float32(0.3275911 / math.sqrt(2.0))
_ERFC_FIRST = np.float32(1.061405429)
_ERFC_OTHERS = tuple(
    np.float32(value)
    for value in (-1.453152027, 1.421413741, -0.284496736, 0.254829592)
)

_TANH_SCALE = np.float32(-2.0 * math.sqrt(2.0 / math.pi))
_TANH_CUBIC = np.float32(0.044715)


def gelu(x: mx.array) -> mx.array:
    """`x` times the normal distribution up to `x`."""
    return _by_blocks(x, _gelu)


def gelu_approx(x: mx.array) -> mx.array:
    """GELU with a hyperbolic tangent in place of the error function."""
    return _by_blocks(x, _gelu_approx)


def silu(x: mx.array) -> mx.array:
    """`x` times its sigmoid."""
    return _by_blocks(x, _silu)


def _by_blocks(x: mx.array, compute: _Compute) -> mx.array:
    """Compute float32 numbers of any shape, a block at a time."""
    inputs = np.array(x, copy=False).reshape(-1)
    outputs = np.empty_like(inputs)
    scratch = np.empty(min(_BLOCK, inputs.size), dtype=np.float32)
    for start in range(0, inputs.size, _BLOCK):
        part = inputs[start : start + _BLOCK]
        compute(part, outputs[start : start + _BLOCK], scratch[: part.size])
    return mx.array(outputs.reshape(x.shape))


def _gelu(x: _Floats, out: _Floats, u: _Floats) -> None:
    """max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2."""
    size = np.minimum(np.abs(x), _FLAT)
    np.multiply(size, _ERFC_P, out=u)
    np.add(u, np.float32(1.0), out=u)
    np.reciprocal(u, out=u)
    np.multiply(u, _ERFC_FIRST, out=out)
    for factor in _ERFC_OTHERS:
        np.add(out, factor, out=out)
        np.multiply(out, u, out=out)
    np.multiply(out, size, out=out)
    np.multiply(size, size, out=u)
    np.multiply(u, np.float32(-0.5), out=u)
    np.exp(u, out=u)
    np.multiply(out, u, out=out)
    np.multiply(out, np.float32(0.5), out=out)
    np.maximum(x, np.float32(0.0), out=u)
    np.subtract(u, out, out=out)


def _gelu_approx(x: _Floats, out: _Floats, u: _Floats) -> None:
    """x / (1 + exp(-2 * t)), which is x * (1 + tanh(t)) / 2."""
    np.clip(x, -_FLAT, _FLAT, out=out)
    np.multiply(out, out, out=u)
    np.multiply(u, _TANH_CUBIC, out=u)
    np.add(u, np.float32(1.0), out=u)
    np.multiply(u, out, out=u)
    np.multiply(u, _TANH_SCALE, out=u)
    _times_sigmoid(x, out, u)


def _silu(x: _Floats, out: _Floats, u: _Floats) -> None:
    np.negative(x, out=u)
    _times_sigmoid(x, out, u)


def _times_sigmoid(x: _Floats, out: _Floats, u: _Floats) -> None:
    """x / (1 + exp(u))."""
    np.minimum(u, _MOST_EXPONENT, out=u)
    np.exp(u, out=u)
    np.add(u, np.float32(1.0), out=u)
    np.divide(x, u, out=out)
