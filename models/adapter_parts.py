"""Gives each rank of a job its part of the adapters: what goes with its part of a layer.

A definition alone knows how it divides its layers. So it divides an outline whose
numbers say which row and column each is, and what is left tells the adapters' parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.adapter_files import Adapter, LowRank
from rvllm_local.models.sharding import divide


def divide_adapters(
    adapters: Sequence[Adapter],
    outline: nn.Module,
    config: Mapping[str, Any],
    group: mx.distributed.Group,
) -> list[Adapter]:
    """The adapters for this rank's part of the model. `outline` is used up.

    Raises `UnsupportedModelError` for a layer whose division cannot be told.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for path, part in adapter.layers.items():
            sizes[path] = (part.a.shape[0], part.b.shape[1])
    numbered = [(path, _numbered(*size)) for path, size in sizes.items()]
    outline.update_modules(tree_unflatten(numbered))
    divide(outline, config, group)
    left = dict(outline.named_modules())
    divided = []
    for adapter in adapters:
        layers = {}
        for path, part in adapter.layers.items():
            layers[path] = _part_of(part, path, left[path], group)
        divided.append(dataclasses.replace(adapter, layers=layers))
    return divided


def _numbered(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights are their columns' numbers, and whose bias its rows'."""
    layer = nn.Linear(1, 1)
    columns = mx.arange(inputs, dtype=mx.int32)[None, :]
    layer.weight = mx.broadcast_to(columns, (outputs, inputs))
    layer.bias = mx.arange(outputs, dtype=mx.int32)
    return layer


def _part_of(
    part: LowRank, path: str, left: nn.Module, group: mx.distributed.Group
) -> LowRank:
    inputs = part.a.shape[0]
    outputs = part.b.shape[1]
    columns = np.array(left.weight[0])
    rows = np.array(left.bias)
    num_rows = left.weight.shape[0]
    if columns.size < inputs:
        if num_rows != outputs:
            raise _not_told(path)
        part = dataclasses.replace(part, a=part.a[mx.array(columns)])
        # Each rank has a part of the sum over the inputs. Where the layer itself does
        # not complete it, the definition does so later.
        if isinstance(left, nn.ShardedToAllLinear):
            part = dataclasses.replace(part, group=group)
        return part
    if num_rows == outputs:
        return part
    if rows.size != num_rows or rows.dtype != np.int32:
        raise _not_told(path)
    return dataclasses.replace(part, b=part.b[:, mx.array(rows)])


def _not_told(path: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"adapters cannot be divided between ranks at {path}: its definition divides "
        "that layer in a way of its own; use one rank"
    )
