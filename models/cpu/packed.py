"""Quantized matrices as onnxruntime's `MatMulNBits` takes them, made from MLX's packed ones without a rounding.

MLX has `w = scale * code + bias`, the operator `w = scale * (code - zero)` with `zero` 8 or 128. What is left over,
`offset = bias + scale * zero`, multiplies the sum of a block's inputs: a product that is a block's size narrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

FloatArray = npt.NDArray[np.float32]

_ZERO = {4: 8, 8: 128}
_BLOCKS = (16, 32, 64, 128, 256)
_CHUNK_VALUES = 1 << 22  # unpacked at once
_MXFP4_HALF = 2.0  # twice each of mxfp4's values is a whole number


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """`codes` is uint8 `[rows, blocks, block * bits / 8]`; `scales` is float32 `[rows, blocks]`.

    `offsets` is float32 `[rows, blocks]`, and None where all of them are 0.
    """

    codes: npt.NDArray[np.uint8]
    scales: FloatArray
    offsets: FloatArray | None
    bits: int
    block: int

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1]) * self.block

    @property
    def nbytes(self) -> int:
        offsets = 0 if self.offsets is None else self.offsets.nbytes
        return self.codes.nbytes + self.scales.nbytes + offsets

    def values(self, rows: npt.NDArray[Any]) -> FloatArray:
        """Those rows as float32 `[*rows, columns]`."""
        codes, scales = self.codes[rows], self.scales[rows]
        if self.bits == 4:
            codes = np.stack([codes & 0x0F, codes >> 4], axis=-1)
        blocks = codes.reshape(*scales.shape, self.block)
        signed = blocks.astype(np.float32) - np.float32(_ZERO[self.bits])
        values: FloatArray = signed * scales[..., None]
        if self.offsets is not None:
            values += self.offsets[rows][..., None]
        return values.reshape(*scales.shape[:-1], self.columns)


def refusal(layer: nn.Module) -> str | None:
    """Why this quantized layer cannot be multiplied by the operator; None if it can."""
    mode, bits, block = layer.mode, layer.bits, layer.group_size
    if layer.get("global_scale") is not None:
        return "it has a global scale"
    if mode not in ("affine", "mxfp4"):
        return f"{mode} has no form in whole numbers"
    if block not in _BLOCKS:
        return f"groups of {block} are no block of the operator"
    if bits > 8:
        return f"{bits} bits are more than the operator has"
    columns = layer["weight"].shape[-1] * 32 // bits
    groups = layer["scales"].shape[-1]
    if groups * block != columns:
        return f"{groups} groups of {block} do not make {columns} columns"
    return None


def stored_bits(bits: int) -> int:
    """The bits that codes of `bits` take here: the next wider form that the operator has."""
    return 4 if bits <= 4 else 8


def pack(layer: nn.Module) -> PackedMatrix:
    """The matrix `[rows, columns]` of a quantized layer that `refusal` has nothing against."""
    weight, block = np.array(layer["weight"]), layer.group_size
    if layer.mode == "mxfp4":
        return _from_mxfp4(layer, weight)
    scales = np.array(layer["scales"].astype(mx.float32))
    biases = np.array(layer["biases"].astype(mx.float32))
    bits = stored_bits(layer.bits)
    shape = (*scales.shape, block * bits // 8)
    if bits == layer.bits:
        codes = weight.view(np.uint8)
    else:
        codes = _widened(weight, layer.bits, bits)
    return PackedMatrix(
        codes.reshape(shape), scales, _offsets(scales, biases, bits), bits, block
    )


def _offsets(scales: FloatArray, biases: FloatArray, bits: int) -> FloatArray | None:
    offsets: FloatArray = biases + scales * np.float32(_ZERO[bits])
    return offsets if offsets.any() else None


def _widened(
    weight: npt.NDArray[np.uint32], bits: int, wider: int
) -> npt.NDArray[np.uint8]:
    """MLX's stream of codes, each with its lowest bit first, as codes of 4 or 8 bits."""
    columns = weight.shape[-1] * 32 // bits
    widened = np.empty((len(weight), columns * wider // 8), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    places = (1 << np.arange(bits)).astype(np.uint8)
    for start in range(0, len(weight), step):
        raw = weight[start : start + step].view(np.uint8)
        stream = np.unpackbits(raw, axis=-1, bitorder="little")
        stream = stream.reshape(len(raw), columns, bits)
        codes: npt.NDArray[Any] = (stream @ places).astype(np.uint8)
        if wider == 4:
            codes = codes[:, ::2] | (codes[:, 1::2] << 4)
        widened[start : start + step] = codes
    return widened


def _from_mxfp4(layer: nn.Module, weight: npt.NDArray[np.uint32]) -> PackedMatrix:
    """mxfp4's sixteen values are halves of whole numbers from -12 to 12: 8 bits hold them exactly."""
    exponents = np.array(layer["scales"]).astype(np.int32) - 127
    scales = np.ldexp(np.float32(1 / _MXFP4_HALF), exponents).astype(np.float32)
    columns = weight.shape[-1] * 8
    codes = np.empty((len(weight), columns), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, len(weight), step):
        stop = start + step
        nibbles = weight[start:stop].view(np.uint8)
        pairs = np.stack([nibbles & 0x0F, nibbles >> 4], axis=-1)
        codes[start:stop] = _MXFP4_CODES[pairs.reshape(len(nibbles), -1)]
    shape = (*scales.shape, layer.group_size)
    return PackedMatrix(codes.reshape(shape), scales, None, 8, layer.group_size)


_MXFP4_MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12])  # twice the values
_MXFP4_CODES = np.concatenate(
    [_ZERO[8] + _MXFP4_MAGNITUDES, _ZERO[8] - _MXFP4_MAGNITUDES]
).astype(np.uint8)


def joined(matrices: list[PackedMatrix]) -> PackedMatrix | None:
    """Matrices over one input as a single one, rows after rows; None where their forms differ."""
    first = matrices[0]
    for matrix in matrices:
        if (matrix.bits, matrix.block) != (first.bits, first.block):
            return None
    return PackedMatrix(
        np.concatenate([matrix.codes for matrix in matrices]),
        np.concatenate([matrix.scales for matrix in matrices]),
        _joined_offsets(matrices),
        first.bits,
        first.block,
    )


def _joined_offsets(matrices: list[PackedMatrix]) -> FloatArray | None:
    if all(matrix.offsets is None for matrix in matrices):
        return None
    parts: list[FloatArray] = []
    for matrix in matrices:
        if matrix.offsets is None:
            parts.append(np.zeros_like(matrix.scales))
        else:
            parts.append(matrix.offsets)
    return np.concatenate(parts)
