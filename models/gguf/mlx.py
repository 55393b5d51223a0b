"""GGUF's blocks as MLX's affine quantization in groups of 32: `value = code * scale + bias`, codes unsigned.

What is affine in groups of 32 already keeps its codes; the K-quants with groups of 16 are quantized again, in more
bits than they had. In a packed row the codes follow one another, each with its lowest bit first.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.models.gguf.blocks import AFFINE, AffineBlocks, BlockFormat, Bytes

GROUP_SIZE = 32
# Bits for what is affine in groups of 16 only: chosen so that the second rounding is small beside the first.
_BITS_AGAIN = {"Q2_K": 4, "Q3_K": 6, "Q6_K": 8}
_CHUNK_VALUES = (
    1 << 22
)  # decoded at once, so that float32 never exists for a whole large tensor


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`weight` is uint32 [..., columns * bits / 32]; `scales` and `biases` are float16 [..., columns / 32]."""

    weight: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]
    bits: int


def repack(
    blocks: Bytes, form: BlockFormat, shape: tuple[int, ...]
) -> PackedWeight | None:
    """Blocks `[number, block bytes]` of a tensor of `shape` for MLX; None if it is not quantized or out of range."""
    if form.name in AFFINE:
        split = AFFINE[form.name]
        pieces = (
            _from_affine(split(blocks[start:stop]))
            for start, stop in _chunks(blocks, form, shape)
        )
    elif form.name in _BITS_AGAIN:
        bits = _BITS_AGAIN[form.name]
        pieces = (
            _again(blocks[start:stop], form, shape, bits)
            for start, stop in _chunks(blocks, form, shape)
        )
    else:
        return None
    packed = list(pieces)
    whole = [
        np.concatenate([getattr(piece, part).reshape(-1) for piece in packed])
        for part in _PARTS
    ]
    weight, scales, biases = whole
    if not (
        np.isfinite(scales).all() and np.isfinite(biases).all()
    ):  # too large to be a half
        return None
    lead = shape[:-1]
    return PackedWeight(
        weight.reshape(*lead, -1),
        scales.reshape(*lead, -1),
        biases.reshape(*lead, -1),
        packed[0].bits,
    )


_PARTS = ("weight", "scales", "biases")


def _chunks(
    blocks: Bytes, form: BlockFormat, shape: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Ranges of blocks that hold whole rows."""
    row = shape[-1] // form.elements
    step = max(1, _CHUNK_VALUES // shape[-1]) * row
    return [
        (start, min(start + step, len(blocks))) for start in range(0, len(blocks), step)
    ]


def _from_affine(parts: AffineBlocks) -> PackedWeight:
    with np.errstate(over="ignore"):
        scales, biases = (
            parts.scales.astype(np.float16),
            parts.biases.astype(np.float16),
        )
    return PackedWeight(
        _pack(parts.codes.reshape(-1), parts.bits), scales, biases, parts.bits
    )


def _pack(codes: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes as one stream of bits; their number is a multiple of 32."""
    if bits == 8:
        raw = codes
    elif bits == 4:
        raw = codes[::2] | (codes[1::2] << 4)
    else:  # eight codes in as many bytes as a code has bits
        words = np.zeros(len(codes) // 8, dtype="<u8")
        for place in range(8):
            words |= codes[place::8].astype(np.uint64) << np.uint64(place * bits)
        raw = words.view(np.uint8).reshape(-1, 8)[:, :bits]
    return (
        np.ascontiguousarray(raw).reshape(-1).view("<u4").astype(np.uint32, copy=False)
    )


def _again(
    blocks: Bytes, form: BlockFormat, shape: tuple[int, ...], bits: int
) -> PackedWeight:
    rows = mx.array(form.decode(blocks).reshape(-1, shape[-1]))
    weight, scales, biases = mx.quantize(rows, group_size=GROUP_SIZE, bits=bits)
    with np.errstate(over="ignore"):
        return PackedWeight(
            np.array(weight),
            np.array(scales).astype(np.float16),
            np.array(biases).astype(np.float16),
            bits,
        )
