"""Gives each rank of a job its part of the adapters: what goes with its part of a layer.

A definition alone knows how it divides its layers. So it divides an outline whose
numbers say which row and column each is, and what is left tells the adapters' parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
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
    numbered = {}
    for adapter in adapters:
        for path, part in adapter.layers.items():
            numbered[path] = _numbered(part)
    replaced = tree_unflatten(list(numbered.items()))
    outline.update_modules(replaced)
    divide(outline, config, group)
    left = dict(outline.named_modules())
    divided = []
    for adapter in adapters:
        layers = {}
        for path, part in adapter.layers.items():
            layers[path] = _part_of(
                part,
                path,
                left[path],
                group,
            )
        part_of_adapter = dataclasses.replace(
            adapter,
            layers=layers,
        )
        divided.append(part_of_adapter)
    return divided


def adapters_of_layers(adapters: Sequence[Adapter], module: nn.Module) -> list[Adapter]:
    """The adapters for the layers that a module has."""
    paths = {path for path, _ in module.named_modules()}
    parts = []
    for adapter in adapters:
        layers = {}
        for path, part in adapter.layers.items():
            if path in paths:
                layers[path] = part
        parts.append(dataclasses.replace(adapter, layers=layers))
    return parts


def _numbered(part: LowRank) -> nn.Linear:
    """A layer whose weights are their columns' numbers, and whose bias its rows'."""
    inputs = part.a.shape[0]
    outputs = part.b.shape[1]
    shape = (outputs, inputs)
    columns = mx.arange(
        inputs,
        dtype=mx.int32,
    )
    rows = mx.arange(
        outputs,
        dtype=mx.int32,
    )
    layer = nn.Linear(1, 1)
    layer.weight = mx.broadcast_to(columns, shape)
    layer.bias = rows
    return layer


def _part_of(
    part: LowRank,
    path: str,
    left: nn.Module,
    group: mx.distributed.Group,
) -> LowRank:
    inputs = part.a.shape[0]
    outputs = part.b.shape[1]
    columns = left.weight[0]
    rows = left.bias
    num_rows = left.weight.shape[0]
    if columns.size < inputs:
        if num_rows != outputs:
            raise _not_told(path)
        return _part_by_columns(
            part,
            columns,
            left,
            group,
        )
    if num_rows == outputs:
        return part
    if rows.size != num_rows:
        raise _not_told(path)
    if rows.dtype != mx.int32:
        raise _not_told(path)
    return dataclasses.replace(
        part,
        b=part.b[:, rows],
    )


def _part_by_columns(
    part: LowRank,
    columns: mx.array,
    left: nn.Module,
    group: mx.distributed.Group,
) -> LowRank:
    """Each rank has a part of the sum over the inputs.

    Where the layer itself does not complete it, the definition does so later.
    """
    sums = None
    if isinstance(left, nn.ShardedToAllLinear):
        sums = group
    return dataclasses.replace(
        part,
        a=part.a[columns],
        group=sums,
    )


def _not_told(path: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"adapters cannot be divided between ranks at {path}: its definition divides "
        "that layer in a way of its own; use one rank"
    )
