"""Matrices that a file has apart and a definition has in one, one behind the other."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from rvllm_local.errors import ModelFileError
from rvllm_local.models.gguf.architectures import Architecture

Shape = tuple[int, ...]
# A tensor's name in the file, and its shape.
Stored = tuple[str, Shape]


def joined_shapes(
    architecture: Architecture, stored: Mapping[str, Stored]
) -> dict[str, Stored]:
    """What is stored under each of mlx-lm's names, with the parts as one."""
    shapes = dict(stored)
    for whole, (first, second) in _pairs(architecture, stored).items():
        name, above = shapes.pop(first)
        _, below = shapes.pop(second)
        rows = above[0] + below[0]
        shapes[whole] = (name, (rows, *above[1:]))
    return shapes


def joined_weights(
    architecture: Architecture, weights: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """The weights with the parts as one. Raises `ModelFileError` for unlike parts."""
    joined = dict(weights)
    for whole, (first, second) in _pairs(architecture, weights).items():
        above, below = joined.pop(first), joined.pop(second)
        if above.dtype != below.dtype or above.shape[1:] != below.shape[1:]:
            raise ModelFileError(
                f"the weights {first!r} and {second!r} are packed in different ways, "
                "and the model has them in one; use safetensors"
            )
        joined[whole] = mx.concatenate([above, below], axis=0)
    return joined


def _pairs(
    architecture: Architecture, names: Mapping[str, object]
) -> dict[str, tuple[str, str]]:
    """The names of both parts, by that of the whole."""
    pairs = {}
    for whole, (above, below) in architecture.joined.items():
        for first in names:
            second = first.replace(f".{above}.", f".{below}.")
            if second != first and second in names:
                name = first.replace(f".{above}.", f".{whole}.")
                pairs[name] = (first, second)
    return pairs
