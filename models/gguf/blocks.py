"""The encodings of tensors in GGUF files, decoded to float32 block by block.

The layouts are those of ggml's public block formats. Nothing here knows a file or a
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Bytes = npt.NDArray[Any]  # uint8, which numpy's types lose in shifts

_SUPER = 256  # values in a K-quant's block
_EIGHT = np.arange(8, dtype=np.uint8)[:, None]  # shifts to each bit of a byte
_FOUR = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]  # shifts to each two bits
# The codebook of IQ4_NL and IQ4_XS.
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    dtype=np.int8,
)

# MXFP4's numbers, doubled and shifted by their largest: whole numbers from 0.
_MXFP4_ZERO = 12
_MXFP4_VALUES = np.array(
    [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8
)
_MXFP4_VALUES = (_MXFP4_VALUES + _MXFP4_ZERO).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A tensor encoding: `elements` values in `size` bytes.

    `decode` takes `[blocks, size]` bytes.
    """

    name: str
    elements: int
    size: int
    decode: Callable[[Bytes], FloatArray]


@dataclass(frozen=True, slots=True)
class AffineBlocks:
    """Blocks as `value = code * scale + bias`, in groups of 32.

    Codes are `[blocks, elements]`, scales and biases `[blocks, groups]`.
    """

    codes: Bytes
    scales: FloatArray
    biases: FloatArray
    bits: int


def half(raw: Bytes) -> FloatArray:
    """Little-endian float16 bytes as float32."""
    halves = np.ascontiguousarray(raw).view(np.float16)
    return halves.astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """[blocks, n] bytes to [blocks, 2n] codes: the low halves, then the high ones."""
    low = raw & 0x0F
    high = raw >> 4
    return np.concatenate([low, high], axis=1)


def _bits(raw: Bytes) -> Bytes:
    """[blocks, n] bytes to [blocks, 8n] bits, the lowest first."""
    contiguous = np.ascontiguousarray(raw)
    return np.unpackbits(contiguous, axis=1, bitorder="little")


def _pairs(raw: Bytes, run: int) -> Bytes:
    """[blocks, n] bytes to [blocks, 2n] codes of 4 bits.

    Of each run of bytes come the low halves, then the high ones.
    """
    runs = raw.reshape(len(raw), -1, 1, run)
    low = runs & 0x0F
    high = runs >> 4
    codes = np.concatenate([low, high], axis=2)
    return codes.reshape(len(raw), -1)


def _quads(raw: Bytes) -> Bytes:
    """[blocks, 64] bytes to [blocks, 256] codes of 2 bits.

    A run of 32 bytes is read four times.
    """
    runs = raw.reshape(len(raw), -1, 1, 32)
    codes = (runs >> _FOUR) & 3
    return codes.reshape(len(raw), -1)


def _bit_planes(raw: Bytes) -> Bytes:
    """[blocks, 32] bytes to [blocks, 256] bits.

    Bit n of byte i is of value i in group n.
    """
    bits = (raw[:, None] >> _EIGHT) & 1  # [blocks, 8, 32]
    return bits.reshape(len(raw), _SUPER)


def q4_0(raw: Bytes) -> AffineBlocks:
    """Scale, 16 bytes of codes; the value is scale * (code - 8)."""
    scale = half(raw[:, :2])
    codes = _nibbles(raw[:, 2:])
    return AffineBlocks(codes, scale, scale * -8, 4)


def q4_1(raw: Bytes) -> AffineBlocks:
    """Scale, lowest value, 16 bytes of codes."""
    scale = half(raw[:, :2])
    lowest = half(raw[:, 2:4])
    codes = _nibbles(raw[:, 4:])
    return AffineBlocks(codes, scale, lowest, 4)


def q5_0(raw: Bytes) -> AffineBlocks:
    """Scale, 32 fifth bits, 16 bytes of codes; the value is scale * (code - 16)."""
    scale = half(raw[:, :2])
    fifth = _bits(raw[:, 2:6])
    codes = _nibbles(raw[:, 6:]) | (fifth << 4)
    return AffineBlocks(codes, scale, scale * -16, 5)


def q5_1(raw: Bytes) -> AffineBlocks:
    """Scale, lowest value, 32 fifth bits, 16 bytes of codes."""
    scale = half(raw[:, :2])
    lowest = half(raw[:, 2:4])
    fifth = _bits(raw[:, 4:8])
    codes = _nibbles(raw[:, 8:]) | (fifth << 4)
    return AffineBlocks(codes, scale, lowest, 5)


def q8_0(raw: Bytes) -> AffineBlocks:
    """Scale, 32 signed bytes."""
    scale = half(raw[:, :2])
    codes = raw[:, 2:] ^ 0x80
    return AffineBlocks(codes, scale, scale * -128, 8)


def iq4_nl(raw: Bytes) -> AffineBlocks:
    """Scale, 16 bytes of indices into the codebook."""
    scale = half(raw[:, :2])
    indices = _nibbles(raw[:, 2:])
    return AffineBlocks(_from_codebook(indices), scale, scale * -128, 8)


def iq4_xs(raw: Bytes) -> AffineBlocks:
    """Scale; eight 6-bit scales, their high bits first; 128 bytes of indices."""
    word = np.ascontiguousarray(raw[:, 2:4]).view("<u2")
    shifts = np.arange(0, 16, 2, dtype=np.uint32)
    shifted = np.right_shift(word.astype(np.uint32), shifts)  # [blocks, 8]
    high = np.bitwise_and(shifted, 3, dtype=np.uint32)
    pairs = raw[:, 4:8]
    low = np.stack([pairs & 0x0F, pairs >> 4], axis=2)
    steps = low.reshape(len(raw), 8) | (high << 4)
    scale = half(raw[:, :2]) * (steps.astype(np.float32) - 32)
    indices = _pairs(raw[:, 8:], 16)
    return AffineBlocks(_from_codebook(indices), scale, scale * -128, 8)


def _from_codebook(indices: Bytes) -> Bytes:
    values = _IQ4_VALUES[indices].astype(np.int16)
    return (values + 128).astype(np.uint8)


def q4_k(raw: Bytes) -> AffineBlocks:
    """Two scales, eight 6-bit scales and minima in 12 bytes, 128 bytes of codes."""
    scales, minima = _six_bit_scales(raw[:, 4:16])
    scales = half(raw[:, :2]) * scales
    minima = -half(raw[:, 2:4]) * minima
    codes = _pairs(raw[:, 16:], 32)
    return AffineBlocks(codes, scales, minima, 4)


def q5_k(raw: Bytes) -> AffineBlocks:
    """As Q4_K, with 32 bytes of fifth bits before the codes."""
    scales, minima = _six_bit_scales(raw[:, 4:16])
    scales = half(raw[:, :2]) * scales
    minima = -half(raw[:, 2:4]) * minima
    fifth = _bit_planes(raw[:, 16:48])
    codes = _pairs(raw[:, 48:], 32) | (fifth << 4)
    return AffineBlocks(codes, scales, minima, 5)


def _six_bit_scales(raw: Bytes) -> tuple[FloatArray, FloatArray]:
    """12 bytes to eight scales and eight minima.

    The first four of each are in 6 bits of a byte; beside them are the two high bits of
    the other four, whose low bits follow.
    """
    first = raw[:, :4]
    second = raw[:, 4:8]
    third = raw[:, 8:12]
    other_scales = (third & 0x0F) | ((first >> 6) << 4)
    other_minima = (third >> 4) | ((second >> 6) << 4)
    scales = np.concatenate([first & 63, other_scales], axis=1)
    minima = np.concatenate([second & 63, other_minima], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q2_k(raw: Bytes) -> FloatArray:
    """16 bytes of 4-bit scales and minima, 64 of codes, and the scales of both.

    Groups have 16 values.
    """
    low = raw[:, :16] & 0x0F
    high = raw[:, :16] >> 4
    scales = half(raw[:, 80:82]) * low
    minima = half(raw[:, 82:84]) * high
    codes = _quads(raw[:, 16:80]).reshape(len(raw), 16, 16)
    values: FloatArray = scales[:, :, None] * codes - minima[:, :, None]
    return values.reshape(len(raw), _SUPER)


def _q3_k(raw: Bytes) -> FloatArray:
    """32 bytes of third bits, 64 of codes, 12 of 6-bit scales, scale; groups of 16."""
    third = _bit_planes(raw[:, :32])
    codes = _quads(raw[:, 32:96]) | (third << 2)
    high = (raw[:, 104:108][:, None] >> _FOUR) & 3  # [blocks, 4, 4]
    low = _nibbles(raw[:, 96:104])
    steps = low | (high.reshape(len(raw), 16) << 4)
    scales = half(raw[:, 108:110]) * (steps.astype(np.float32) - 32)
    signed = codes.astype(np.float32) - 4
    groups = signed.reshape(len(raw), 16, 16)
    values: FloatArray = scales[:, :, None] * groups
    return values.reshape(len(raw), _SUPER)


def _q6_k(raw: Bytes) -> FloatArray:
    """128 bytes of low halves, 64 of two high bits, 16 signed scales, scale.

    Groups have 16 values.
    """
    low = _pairs(raw[:, :128], 64)
    high = _quads(raw[:, 128:192])
    codes = low | (high << 4)
    signed = codes.astype(np.float32) - 32
    groups = signed.reshape(len(raw), 16, 16)
    steps = np.ascontiguousarray(raw[:, 192:208]).view(np.int8)
    scales = half(raw[:, 208:210]) * steps.astype(np.float32)
    values: FloatArray = scales[:, :, None] * groups
    return values.reshape(len(raw), _SUPER)


def mxfp4(raw: Bytes) -> AffineBlocks:
    """An exponent, 16 bytes of codes for whole numbers from -12 to 12."""
    exponent = raw[:, :1].astype(np.int32) - 128
    scale = np.ldexp(np.float32(1.0), exponent).astype(np.float32)
    codes = _MXFP4_VALUES[_nibbles(raw[:, 1:])]
    return AffineBlocks(codes, scale, scale * -_MXFP4_ZERO, 5)


def _f32(raw: Bytes) -> FloatArray:
    return raw.view(np.float32).copy()


def _bf16(raw: Bytes) -> FloatArray:
    upper = np.ascontiguousarray(raw).view(np.uint16)
    words = upper.astype(np.uint32) << 16
    return words.view(np.float32)


def _affine(split: Callable[[Bytes], AffineBlocks]) -> Callable[[Bytes], FloatArray]:
    def decode(raw: Bytes) -> FloatArray:
        parts = split(raw)
        groups = parts.codes.reshape(len(raw), -1, 32).astype(np.float32)
        scales = parts.scales[:, :, None]
        biases = parts.biases[:, :, None]
        values = groups * scales + biases
        return values.reshape(len(raw), -1)

    return decode


# Encodings that are affine in groups of 32, as MLX's own quantization is.
AFFINE: dict[str, Callable[[Bytes], AffineBlocks]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "MXFP4": mxfp4,
}
FORMATS = {
    0: BlockFormat("F32", 1, 4, _f32),
    1: BlockFormat("F16", 1, 2, half),
    2: BlockFormat("Q4_0", 32, 18, _affine(q4_0)),
    3: BlockFormat("Q4_1", 32, 20, _affine(q4_1)),
    6: BlockFormat("Q5_0", 32, 22, _affine(q5_0)),
    7: BlockFormat("Q5_1", 32, 24, _affine(q5_1)),
    8: BlockFormat("Q8_0", 32, 34, _affine(q8_0)),
    10: BlockFormat("Q2_K", _SUPER, 84, _q2_k),
    11: BlockFormat("Q3_K", _SUPER, 110, _q3_k),
    12: BlockFormat("Q4_K", _SUPER, 144, _affine(q4_k)),
    13: BlockFormat("Q5_K", _SUPER, 176, _affine(q5_k)),
    14: BlockFormat("Q6_K", _SUPER, 210, _q6_k),
    20: BlockFormat("IQ4_NL", 32, 18, _affine(iq4_nl)),
    23: BlockFormat("IQ4_XS", _SUPER, 136, _affine(iq4_xs)),
    30: BlockFormat("BF16", 1, 2, _bf16),
    39: BlockFormat("MXFP4", 32, 17, _affine(mxfp4)),
}
