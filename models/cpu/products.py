"""Writes matrix products into a graph: quantized ones in int8 arithmetic, plain ones in float32."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.models.cpu.onnx_file import CONTRIB, GraphWriter
from rvllm_local.models.cpu.packed import PackedMatrix, joined
from rvllm_local.models.cpu.stored import StoredEmbedding, StoredLinear

FloatArray = npt.NDArray[np.float32]

_INT8_ARITHMETIC = 4  # the operator's accuracy_level that rounds activations to int8


class ProductWriter:
    """Products over inputs `[rows, tokens, columns]`, in one graph."""

    def __init__(self, writer: GraphWriter) -> None:
        self._writer = writer

    def linear(self, x: str, layers: Sequence[nn.Module]) -> list[str]:
        """The outputs of linear layers over one input; layers of one form are one product.

        What stored layers hold is taken out of them.
        """
        sizes = [rows_of(layer) for layer in layers]
        if not all(isinstance(layer, StoredLinear) for layer in layers):
            return [self._alone(x, layer) for layer in layers]
        matrices = [layer.take() for layer in layers]
        biases = [_bias(layer) for layer in layers]
        matrix = joined(matrices)
        if matrix is None:
            pairs = zip(matrices, biases, strict=True)
            return [self.packed(x, part, bias) for part, bias in pairs]
        product = self.packed(x, matrix, _joined_bias(sizes, biases))
        return self._split(product, sizes)

    def packed(self, x: str, matrix: PackedMatrix, bias: FloatArray | None) -> str:
        """One quantized product."""
        writer = self._writer
        inputs = [x, writer.constant(matrix.codes), writer.constant(matrix.scales)]
        if bias is not None:
            inputs += ["", "", writer.constant(bias)]
        product = writer.node(
            "MatMulNBits",
            inputs,
            CONTRIB,
            K=matrix.columns,
            N=matrix.rows,
            bits=matrix.bits,
            block_size=matrix.block,
            accuracy_level=_INT8_ARITHMETIC,
        )
        if matrix.offsets is None:
            return product
        # Each output also takes every block's offset times the sum of the block's inputs.
        shape = writer.shape(0, 0, -1, matrix.block)
        blocks = writer.node("Reshape", [x, shape])
        sums = writer.node("ReduceSum", [blocks, writer.shape(3)], keepdims=0)
        offsets = writer.constant(matrix.offsets.T)
        return writer.node("Add", [product, writer.node("MatMul", [sums, offsets])])

    def _alone(self, x: str, layer: nn.Module) -> str:
        if isinstance(layer, StoredLinear):
            return self.packed(x, layer.take(), _bias(layer))
        weight = self._writer.constant(np.array(layer["weight"]).T)
        layer.pop("weight")
        product = self._writer.node("MatMul", [x, weight])
        bias = _bias(layer)
        if bias is None:
            return product
        return self._writer.node("Add", [product, self._writer.constant(bias)])

    def _split(self, product: str, sizes: Sequence[int]) -> list[str]:
        if len(sizes) == 1:
            return [product]
        inputs = [product, self._writer.shape(*sizes)]
        return self._writer.nodes("Split", inputs, [True] * len(sizes), axis=-1)


def rows_of(layer: nn.Module) -> int:
    """A linear layer's outputs; an embedding's tokens."""
    is_stored = isinstance(layer, StoredLinear | StoredEmbedding)
    source = layer.inner if is_stored else layer
    return int(source["weight"].shape[0])


def columns_of(layer: nn.Module) -> int:
    """A linear layer's inputs."""
    if isinstance(layer, StoredLinear):
        return int(layer.inner["scales"].shape[-1]) * int(layer.inner.group_size)
    return int(layer["weight"].shape[1])


def _bias(layer: nn.Module) -> FloatArray | None:
    bias = layer.bias if isinstance(layer, StoredLinear) else layer.get("bias")
    return None if bias is None else np.array(bias.astype(mx.float32))


def _joined_bias(
    sizes: Sequence[int], biases: Sequence[FloatArray | None]
) -> FloatArray | None:
    if all(bias is None for bias in biases):
        return None
    parts = []
    for size, bias in zip(sizes, biases, strict=True):
        parts.append(np.zeros(size, dtype=np.float32) if bias is None else bias)
    return np.concatenate(parts)
