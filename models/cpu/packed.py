"""Quantized matrices as onnxruntime's `MatMulNBits` takes them.

They are made from MLX's packed ones without a rounding. MLX has `w = scale * code + bias`,
the operator `w = scale * (code - zero)` with `zero` 8 or 128. What is left over,
`offset = bias + scale * zero`, multiplies the sum of a block's inputs: a product that is
narrower by a block's size.
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
_MOST_TOGETHER = 32  # inputs that are rounded to int8 by one scale, as llama.cpp does
_BLOCKS = (16, 32, 64, 128, 256)
_CHUNK_VALUES = 1 << 22  # unpacked at once
_MXFP4_HALF = 2.0  # twice each of mxfp4's values is a whole number


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix in blocks of `block` columns.

    `codes` is uint8 `[rows, blocks, block * bits / 8]`; `scales` is float32
    `[rows, blocks]`. `offsets` is float32 `[rows, groups]`, and None where all of them
    are 0. A group is one block or several.
    """

    codes: npt.NDArray[np.uint8]
    scales: FloatArray
    offsets: FloatArray | None
    bits: int
    block: int

    @property
    def rows(self) -> int:
        """Outputs of the product."""
        return len(self.codes)

    @property
    def columns(self) -> int:
        """Inputs of the product."""
        blocks = int(self.codes.shape[1])
        return blocks * self.block

    @property
    def group(self) -> int:
        """Columns that have one offset together."""
        if self.offsets is None:
            return self.block
        return self.columns // int(self.offsets.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        total = self.codes.nbytes + self.scales.nbytes
        if self.offsets is not None:
            total += self.offsets.nbytes
        return total

    def values(self, rows: npt.NDArray[Any]) -> FloatArray:
        """Those rows as float32 `[*rows, columns]`."""
        codes = self.codes[rows]
        scales = self.scales[rows]
        if self.bits == 4:
            low = codes & 0x0F
            high = codes >> 4
            codes = np.stack([low, high], axis=-1)
        blocks = codes.reshape(*scales.shape, self.block)
        zero = np.float32(_ZERO[self.bits])
        signed = blocks.astype(np.float32) - zero
        values: FloatArray = signed * scales[..., None]
        values = values.reshape(*scales.shape[:-1], self.columns)
        if self.offsets is not None:
            offsets = self.offsets[rows]
            groups = values.reshape(*offsets.shape, self.group)
            groups += offsets[..., None]
        return values


def refusal(layer: nn.Module) -> str | None:
    """Why this quantized layer cannot be multiplied by the operator; None if it can."""
    mode = layer.mode
    bits = layer.bits
    block = layer.group_size
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
    """The bits that codes of `bits` take here.

    It is the next wider form that the operator has.
    """
    if bits <= 4:
        return 4
    return 8


def pack(layer: nn.Module) -> PackedMatrix:
    """The matrix `[rows, columns]` of a quantized layer that `refusal` has nothing against."""
    weight = np.array(layer["weight"])
    if layer.mode == "mxfp4":
        return _from_mxfp4(layer, weight)
    scales = np.array(layer["scales"].astype(mx.float32))
    biases = np.array(layer["biases"].astype(mx.float32))
    block = block_of(layer.group_size)
    bits = stored_bits(layer.bits)
    if bits == layer.bits:
        codes = weight.view(np.uint8)
    else:
        codes = _widened(weight, layer.bits, bits)
    offsets = _offsets(scales, biases, bits)
    block_scales = np.repeat(scales, layer.group_size // block, axis=1)
    return PackedMatrix(
        codes=codes.reshape(*block_scales.shape, block * bits // 8),
        scales=block_scales,
        offsets=offsets,
        bits=bits,
        block=block,
    )


def block_of(group_size: int) -> int:
    """The columns of a block, into which a group of stored columns is divided.

    The product rounds the inputs of a block to int8 by one scale: the fewer they are,
    the less the largest of them costs the others.
    """
    return min(group_size, _MOST_TOGETHER)


def _offsets(
    scales: FloatArray,
    biases: FloatArray,
    bits: int,
) -> FloatArray | None:
    """What is left over of each block; None if nothing is."""
    zero = np.float32(_ZERO[bits])
    offsets: FloatArray = biases + scales * zero
    if not offsets.any():
        return None
    return offsets


def _widened(
    weight: npt.NDArray[np.uint32],
    bits: int,
    wider: int,
) -> npt.NDArray[np.uint8]:
    """MLX's stream of codes, each with its lowest bit first, as codes of 4 or 8 bits."""
    columns = weight.shape[-1] * 32 // bits
    row_bytes = columns * wider // 8
    widened = np.empty((len(weight), row_bytes), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    bit_values = (1 << np.arange(bits)).astype(np.uint8)
    for start in range(0, len(weight), step):
        stop = start + step
        raw = weight[start:stop].view(np.uint8)
        stream = np.unpackbits(raw, axis=-1, bitorder="little")
        stream = stream.reshape(len(raw), columns, bits)
        codes: npt.NDArray[Any] = (stream @ bit_values).astype(np.uint8)
        if wider == 4:
            low = codes[:, ::2]
            high = codes[:, 1::2]
            codes = low | (high << 4)
        widened[start:stop] = codes
    return widened


def _from_mxfp4(layer: nn.Module, weight: npt.NDArray[np.uint32]) -> PackedMatrix:
    """An mxfp4 matrix with codes of 8 bits.

    mxfp4's sixteen values are halves of whole numbers from -12 to 12, which 8 bits hold
    exactly.
    """
    exponents = np.array(layer["scales"]).astype(np.int32) - 127
    half = np.float32(1 / _MXFP4_HALF)
    scales = np.ldexp(half, exponents).astype(np.float32)
    columns = weight.shape[-1] * 8
    codes = np.empty((len(weight), columns), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, len(weight), step):
        stop = start + step
        pairs = weight[start:stop].view(np.uint8)
        low = pairs & 0x0F
        high = pairs >> 4
        values = np.stack([low, high], axis=-1)
        codes[start:stop] = _MXFP4_CODES[values.reshape(len(pairs), -1)]
    return PackedMatrix(
        codes=codes.reshape(*scales.shape, layer.group_size),
        scales=scales,
        offsets=None,
        bits=8,
        block=layer.group_size,
    )


_MXFP4_MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12])  # twice the values
_MXFP4_CODES = np.concatenate(
    [_ZERO[8] + _MXFP4_MAGNITUDES, _ZERO[8] - _MXFP4_MAGNITUDES]
).astype(np.uint8)


def joined(matrices: list[PackedMatrix]) -> PackedMatrix | None:
    """Matrices over one input as a single one, rows after rows.

    None where their forms differ.
    """
    first = matrices[0]
    for matrix in matrices:
        if matrix.bits != first.bits or matrix.block != first.block:
            return None
    groups = {matrix.group for matrix in matrices if matrix.offsets is not None}
    if len(groups) > 1:
        return None
    return PackedMatrix(
        codes=np.concatenate([matrix.codes for matrix in matrices]),
        scales=np.concatenate([matrix.scales for matrix in matrices]),
        offsets=_joined_offsets(matrices),
        bits=first.bits,
        block=first.block,
    )


def _joined_offsets(matrices: list[PackedMatrix]) -> FloatArray | None:
    present = [matrix.offsets for matrix in matrices if matrix.offsets is not None]
    if not present:
        return None
    num_groups = present[0].shape[1]
    parts: list[FloatArray] = []
    for matrix in matrices:
        offsets = matrix.offsets
        if offsets is None:
            offsets = np.zeros((matrix.rows, num_groups), dtype=np.float32)
        parts.append(offsets)
    return np.concatenate(parts)
