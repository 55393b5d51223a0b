"""Weights that depend on a tensor's name and shape alone.

So two programs can make the same model without a file of weights between them.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def named_weights(
    tensors: dict[str, list[Any]],
) -> dict[str, npt.NDArray[np.float32]]:
    """Float32 weights by name; each row of `tensors` is a shape and a start.

    The start is what a vector's values are near: a number, a list of numbers, or None
    for a matrix.
    """
    weights = {}
    for name, (shape, start) in tensors.items():
        weights[name] = _weight(name, tuple(shape), start)
    return weights


def _weight(
    name: str, shape: tuple[int, ...], start: float | list[float] | None
) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    noise = np.asarray(random.standard_normal(shape))
    if start is not None:
        values = np.reshape(start, (-1,) if shape else ()) + 0.1 * noise
        return np.asarray(values, np.float32)
    is_embedding = "embed" in name or "wte" in name
    scale = 0.7 if is_embedding else 1.6 / np.sqrt(shape[-1])
    return (scale * noise).astype(np.float32)
