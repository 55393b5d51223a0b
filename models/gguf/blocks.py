"""The encodings of tensors in GGUF files, decoded to float32 block by block.

The layouts are those of ggml's public block formats; nothing here knows a file or a model.
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
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    dtype=np.int8,
)  # the codebook of IQ4_NL and IQ4_XS

# MXFP4's numbers, doubled and shifted by their largest: whole numbers from 0.
_MXFP4_ZERO = 12
_MXFP4_VALUES = np.array(
    [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8
)
_MXFP4_VALUES = (_MXFP4_VALUES + _MXFP4_ZERO).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A tensor encoding: `elements` values in `size` bytes, and how to decode `[blocks, size]` bytes."""

    name: str
    elements: int
    size: int
    decode: Callable[[Bytes], FloatArray]


@dataclass(frozen=True, slots=True)
class AffineBlocks:
    """Blocks as `value = code * scale + bias` in groups of 32: codes `[blocks, elements]`, the rest `[blocks, groups]`."""

    codes: Bytes
    scales: FloatArray
    biases: FloatArray
    bits: int


def half(raw: Bytes) -> FloatArray:
    """Little-endian float16 bytes as float32."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """[blocks, n] bytes to [blocks, 2n] codes: the low halves first, then the high ones."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=1)


def _bits(raw: Bytes) -> Bytes:
    """[blocks, n] bytes to [blocks, 8n] bits, the lowest first."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little")


def _pairs(raw: Bytes, start: int) -> Bytes:
    """[blocks, 32 * n] bytes, two codes of 4 bits each, by runs of 32: low halves, then high halves."""
    runs = raw.reshape(len(raw), -1, 1, start)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(len(raw), -1)


def _quads(raw: Bytes) -> Bytes:
    """[blocks, 64] bytes to [blocks, 256] codes of 2 bits: runs of 32 bytes, each read four times."""
    runs = raw.reshape(len(raw), -1, 1, 32)
    return ((runs >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]) & 3).reshape(
        len(raw), -1
    )


def q4_0(raw: Bytes) -> AffineBlocks:
    """Scale, 16 bytes of codes; the value is scale * (code - 8)."""
    scale = half(raw[:, :2])
    return AffineBlocks(_nibbles(raw[:, 2:]), scale, scale * -8, 4)


def q4_1(raw: Bytes) -> AffineBlocks:
    """Scale, lowest value, 16 bytes of codes."""
    return AffineBlocks(_nibbles(raw[:, 4:]), half(raw[:, :2]), half(raw[:, 2:4]), 4)


def q5_0(raw: Bytes) -> AffineBlocks:
    """Scale, 32 fifth bits, 16 bytes of codes; the value is scale * (code - 16)."""
    scale = half(raw[:, :2])
    return AffineBlocks(
        _nibbles(raw[:, 6:]) | (_bits(raw[:, 2:6]) << 4), scale, scale * -16, 5
    )


def q5_1(raw: Bytes) -> AffineBlocks:
    """Scale, lowest value, 32 fifth bits, 16 bytes of codes."""
    return AffineBlocks(
        _nibbles(raw[:, 8:]) | (_bits(raw[:, 4:8]) << 4),
        half(raw[:, :2]),
        half(raw[:, 2:4]),
        5,
    )


def q8_0(raw: Bytes) -> AffineBlocks:
    """Scale, 32 signed bytes."""
    scale = half(raw[:, :2])
    return AffineBlocks(raw[:, 2:] ^ 0x80, scale, scale * -128, 8)


def iq4_nl(raw: Bytes) -> AffineBlocks:
    """Scale, 16 bytes of places in the codebook."""
    scale = half(raw[:, :2])
    return AffineBlocks(_codebook(_nibbles(raw[:, 2:])), scale, scale * -128, 8)


def iq4_xs(raw: Bytes) -> AffineBlocks:
    """Scale; eight 6-bit scales, their high bits first; 128 bytes of places in the codebook."""
    high = (
        np.ascontiguousarray(raw[:, 2:4]).view("<u2").astype(np.uint32)
    )  # [blocks, 1]
    steps = np.arange(0, 16, 2, dtype=np.uint32)
    high = np.bitwise_and(np.right_shift(high, steps), 3, dtype=np.uint32)
    low = np.stack([raw[:, 4:8] & 0x0F, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    scale = half(raw[:, :2]) * ((low | (high << 4)).astype(np.float32) - 32)
    return AffineBlocks(_codebook(_pairs(raw[:, 8:], 16)), scale, scale * -128, 8)


def _codebook(places: Bytes) -> Bytes:
    return (_IQ4_VALUES[places].astype(np.int16) + 128).astype(np.uint8)


def q4_k(raw: Bytes) -> AffineBlocks:
    """Two scales, eight 6-bit scales and minima in 12 bytes, 128 bytes of codes."""
    scales, minima = _six_bit_scales(raw[:, 4:16])
    return AffineBlocks(
        _pairs(raw[:, 16:], 32),
        half(raw[:, :2]) * scales,
        -half(raw[:, 2:4]) * minima,
        4,
    )


def q5_k(raw: Bytes) -> AffineBlocks:
    """As Q4_K, with 32 bytes of fifth bits before the codes: bit n of byte i belongs to value i of group n."""
    scales, minima = _six_bit_scales(raw[:, 4:16])
    fifth = (
        raw[:, 16:48][:, None] >> np.arange(8, dtype=np.uint8)[:, None]
    ) & 1  # [blocks, 8, 32]
    codes = _pairs(raw[:, 48:], 32) | (fifth.reshape(len(raw), _SUPER) << 4)
    return AffineBlocks(
        codes, half(raw[:, :2]) * scales, -half(raw[:, 2:4]) * minima, 5
    )


def _six_bit_scales(raw: Bytes) -> tuple[FloatArray, FloatArray]:
    """12 bytes to eight scales and eight minima: the first four in 6 bits, the others' two high bits beside those."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 63, (third & 0x0F) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q2_k(raw: Bytes) -> FloatArray:
    """16 bytes of 4-bit scales and minima, 64 of codes, scale of scales, scale of minima; groups of 16."""
    scales = half(raw[:, 80:82]) * (raw[:, :16] & 0x0F)
    minima = half(raw[:, 82:84]) * (raw[:, :16] >> 4)
    codes = _quads(raw[:, 16:80]).reshape(len(raw), 16, 16)
    values: FloatArray = scales[:, :, None] * codes - minima[:, :, None]
    return values.reshape(len(raw), _SUPER)


def _q3_k(raw: Bytes) -> FloatArray:
    """32 bytes of third bits, 64 of codes, 12 of 6-bit scales, scale; groups of 16."""
    third = (raw[:, :32][:, None] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = _quads(raw[:, 32:96]) | (third.reshape(len(raw), _SUPER) << 2)
    low, high = raw[:, 96:104], raw[:, 104:108]
    places = (
        high[:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    ) & 3  # [blocks, 4, 4]
    steps = _nibbles(low) | (places.reshape(len(raw), 16) << 4)
    scales = half(raw[:, 108:110]) * (steps.astype(np.float32) - 32)
    values: FloatArray = scales[:, :, None] * (codes.astype(np.float32) - 4).reshape(
        len(raw), 16, 16
    )
    return values.reshape(len(raw), _SUPER)


def _q6_k(raw: Bytes) -> FloatArray:
    """128 bytes of low halves, 64 of two high bits, 16 signed scales, scale; groups of 16."""
    low = _pairs(raw[:, :128], 64)
    codes = (low | (_quads(raw[:, 128:192]) << 4)).astype(np.float32) - 32
    steps = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    scales = half(raw[:, 208:210]) * steps
    values: FloatArray = scales[:, :, None] * codes.reshape(len(raw), 16, 16)
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
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(
        np.float32
    )


def _affine(split: Callable[[Bytes], AffineBlocks]) -> Callable[[Bytes], FloatArray]:
    def decode(raw: Bytes) -> FloatArray:
        parts = split(raw)
        groups = parts.codes.reshape(len(raw), -1, 32).astype(np.float32)
        return (groups * parts.scales[:, :, None] + parts.biases[:, :, None]).reshape(
            len(raw), -1
        )

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
