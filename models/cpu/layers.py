"""Quantized layers in a model that keeps its own definition: each product is a session, all else stays MLX's."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.models.cpu.onnx_file import GraphWriter
from rvllm_local.models.cpu.packed import PackedMatrix
from rvllm_local.models.cpu.products import ProductWriter, columns_of, rows_of
from rvllm_local.models.cpu.runtime import open_session
from rvllm_local.models.cpu.stored import StoredEmbedding, StoredLinear


class PackedLinear(nn.Module):  # type: ignore[misc]
    """Stands where a stored linear layer was, whose weights it takes."""

    def __init__(self, stored: StoredLinear) -> None:
        super().__init__()
        columns, rows = columns_of(stored), rows_of(stored)
        writer = GraphWriter()
        x = writer.input("x", "float32", (1, "M", columns))
        product = ProductWriter(writer).linear(x, [stored])[0]
        writer.output(product, "y", "float32", (1, "M", rows))
        self._session = open_session(writer.model())

    def __call__(self, x: mx.array) -> mx.array:
        return _product(self._session, x)


class PackedEmbedding(nn.Module):  # type: ignore[misc]
    """Stands where a stored embedding was: rows are dequantized as they are looked up."""

    def __init__(self, stored: StoredEmbedding) -> None:
        super().__init__()
        self._matrix = stored.take()
        self._head: Any = None

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.array(self._matrix.values(np.array(tokens)))

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits of a model whose head is its embedding."""
        if self._head is None:
            self._head = _head_session(self._matrix)
        return _product(self._head, x)


def _head_session(matrix: PackedMatrix) -> Any:
    writer = GraphWriter()
    x = writer.input("x", "float32", (1, "M", matrix.columns))
    product = ProductWriter(writer).packed(x, matrix, None)
    writer.output(product, "y", "float32", (1, "M", matrix.rows))
    return open_session(writer.model())


def _product(session: Any, x: mx.array) -> mx.array:
    flat = x.reshape(1, -1, x.shape[-1]).astype(mx.float32)
    product = mx.array(session.run(["y"], {"x": np.array(flat)})[0])
    return product.reshape(*x.shape[:-1], product.shape[-1])


def pack_layers(module: nn.Module) -> None:
    """Put packed layers in the places of all stored ones, one at a time."""
    leaves = tree_flatten(module.children(), is_leaf=_is_stored)
    for path, layer in leaves:
        if isinstance(layer, StoredEmbedding):
            packed: nn.Module = PackedEmbedding(layer)
        elif isinstance(layer, StoredLinear):
            packed = PackedLinear(layer)
        else:
            continue
        module.update_modules(tree_unflatten([(path, packed)]))


def _is_stored(value: Any) -> bool:
    return isinstance(value, StoredLinear | StoredEmbedding)
