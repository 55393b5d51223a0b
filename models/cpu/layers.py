"""Quantized layers in a model that keeps its own definition.

Each product is a session of onnxruntime; all else stays MLX's.
"""

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
    """Stands in for a stored linear layer, whose weights it takes."""

    def __init__(self, stored: StoredLinear) -> None:
        super().__init__()
        columns = columns_of(stored)
        rows = rows_of(stored)
        writer = GraphWriter()
        products = ProductWriter(writer)
        x = writer.input("x", "float32", ("M", columns))
        (product,) = products.linear(x, [stored])
        writer.output(product, "y", "float32", ("M", rows))
        self._session = open_session(writer.model())

    def __call__(self, x: mx.array) -> mx.array:
        return _product(self._session, x)


class PackedEmbedding(nn.Module):  # type: ignore[misc]
    """Stands in for a stored embedding. Rows are dequantized as they are looked up."""

    def __init__(self, stored: StoredEmbedding) -> None:
        super().__init__()
        self._matrix = stored.take()
        self._head: Any = None

    def __call__(self, tokens: mx.array) -> mx.array:
        rows = self._matrix.values(np.array(tokens))
        return mx.array(rows)

    def as_linear(self, x: mx.array) -> mx.array:
        """The logits of a model whose head is its embedding."""
        if self._head is None:
            self._head = _head_session(self._matrix)
        return _product(self._head, x)


def _head_session(matrix: PackedMatrix) -> Any:
    writer = GraphWriter()
    products = ProductWriter(writer)
    x = writer.input("x", "float32", ("M", matrix.columns))
    product = products.packed(x, matrix, None)
    writer.output(product, "y", "float32", ("M", matrix.rows))
    return open_session(writer.model())


def _product(session: Any, x: mx.array) -> mx.array:
    columns = x.shape[-1]
    flat = x.reshape(-1, columns).astype(mx.float32)
    inputs = {"x": np.array(flat)}
    (outputs,) = session.run(["y"], inputs)
    rows = outputs.shape[-1]
    return mx.array(outputs).reshape(*x.shape[:-1], rows)


def pack_layers(module: nn.Module) -> None:
    """Replace all stored layers by packed ones, one at a time."""
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
