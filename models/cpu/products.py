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
    """Products over inputs `[tokens, columns]`, in one graph."""

    def __init__(self, writer: GraphWriter) -> None:
        self._writer = writer

    def linear(self, x: str, layers: Sequence[nn.Module]) -> list[str]:
        """The outputs of linear layers over one input, each for itself.

        Layers of one form become one product. What stored layers hold is taken out of
        them.
        """
        sizes = [rows_of(layer) for layer in layers]
        products = self._products(x, layers)
        if len(products) < len(layers):
            return self._split(products[0], sizes)
        return products

    def side_by_side(self, x: str, layers: Sequence[nn.Module]) -> str:
        """The outputs of linear layers over one input, the next after the last."""
        products = self._products(x, layers)
        if len(products) == 1:
            return products[0]
        return self._writer.node("Concat", products, axis=-1)

    def _products(self, x: str, layers: Sequence[nn.Module]) -> list[str]:
        """One product of all layers, or one of each where their forms differ."""
        if not all(isinstance(layer, StoredLinear) for layer in layers):
            return [self._alone(x, layer) for layer in layers]
        sizes = [rows_of(layer) for layer in layers]
        matrices = [layer.take() for layer in layers]
        biases = [_bias(layer) for layer in layers]
        matrix = joined(matrices)
        if matrix is not None:
            return [self.packed(x, matrix, _joined_bias(sizes, biases))]
        products = []
        for part, bias in zip(matrices, biases, strict=True):
            products.append(self.packed(x, part, bias))
        return products

    def packed(self, x: str, matrix: PackedMatrix, bias: FloatArray | None) -> str:
        """One quantized product."""
        writer = self._writer
        codes = writer.constant(matrix.codes)
        scales = writer.constant(matrix.scales)
        inputs = [x, codes, scales]
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
        # Each output also takes every group's offset times the sum of the group's inputs.
        # The sum is the mean times the group's length: a power of 2, so nothing is lost.
        means = self._group_means(x, matrix)
        by_length = matrix.offsets.T * np.float32(matrix.group)
        return writer.node("Gemm", [means, writer.constant(by_length), product])

    def _group_means(self, x: str, matrix: PackedMatrix) -> str:
        """The mean of each group's inputs, `[tokens, groups]`.

        It reads nothing but the inputs. A product with a matrix of ones, which reads 0.3 MB
        a layer beside, made a step of one row 2 to 3 % longer.
        """
        writer = self._writer
        groups = matrix.columns // matrix.group
        parted = writer.node("Reshape", [x, writer.shape(-1, groups, matrix.group)])
        return writer.node("ReduceMean", [parted], axes=[2], keepdims=0)

    def _alone(self, x: str, layer: nn.Module) -> str:
        if isinstance(layer, StoredLinear):
            return self.packed(x, layer.take(), _bias(layer))
        writer = self._writer
        weight = np.array(layer["weight"])
        turned = writer.constant(weight.T)
        layer.pop("weight")
        product = writer.node("MatMul", [x, turned])
        bias = _bias(layer)
        if bias is None:
            return product
        return writer.node("Add", [product, writer.constant(bias)])

    def _split(self, product: str, sizes: Sequence[int]) -> list[str]:
        if len(sizes) == 1:
            return [product]
        inputs = [product, self._writer.shape(*sizes)]
        return self._writer.nodes("Split", inputs, [True] * len(sizes), axis=-1)


def rows_of(layer: nn.Module) -> int:
    """A linear layer's outputs; an embedding's tokens."""
    if isinstance(layer, StoredLinear | StoredEmbedding):
        layer = layer.inner
    return int(layer["weight"].shape[0])


def columns_of(layer: nn.Module) -> int:
    """A linear layer's inputs."""
    if isinstance(layer, StoredLinear):
        blocks = int(layer.inner["scales"].shape[-1])
        return blocks * int(layer.inner.group_size)
    return int(layer["weight"].shape[1])


def _bias(layer: nn.Module) -> FloatArray | None:
    if isinstance(layer, StoredLinear):
        layer = layer.inner
    bias = layer.get("bias")
    if bias is None:
        return None
    return np.array(bias.astype(mx.float32))


def _joined_bias(
    sizes: Sequence[int],
    biases: Sequence[FloatArray | None],
) -> FloatArray | None:
    """One bias for all outputs, 0 for layers without; None if no layer has one."""
    if all(bias is None for bias in biases):
        return None
    parts = []
    for size, bias in zip(sizes, biases, strict=True):
        if bias is None:
            parts.append(np.zeros(size, dtype=np.float32))
        else:
            parts.append(bias)
    return np.concatenate(parts)
