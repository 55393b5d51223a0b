"""GGUF's blocks as MLX's affine quantization in groups of 32.

There `value = code * scale + bias`, with unsigned codes. What is affine in groups of 32
already keeps its codes. The K-quants with groups of 16 are quantized again, in more
bits than they had. In a packed row the codes follow one another, each with its lowest
bit first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.models.gguf.blocks import AFFINE, AffineBlocks, BlockFormat, Bytes

GROUP_SIZE = 32
# Bits for what is affine in groups of 16 only, so many that the second rounding is
# small beside the first.
_BITS_AGAIN = {
    "Q2_K": 4,
    "Q3_K": 6,
    "Q6_K": 8,
}
# Decoded at once, so that float32 never exists for a whole large tensor.
_CHUNK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix as MLX packs it.

    `weight` is uint32 [..., columns * bits / 32]; `scales` and `biases` are float16
    [..., columns / 32].
    """

    weight: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]
    bits: int


def repack(
    blocks: Bytes,
    form: BlockFormat,
    shape: tuple[int, ...],
) -> PackedWeight | None:
    """Blocks `[number, block bytes]` of a tensor of `shape` for MLX.

    None if the tensor is not quantized, or out of range.
    """
    if form.name not in AFFINE and form.name not in _BITS_AGAIN:
        return None
    packed = []
    for chunk in _chunks(blocks, form, shape):
        packed.append(_packed(chunk, form, shape[-1]))
    weight = np.concatenate([part.weight.reshape(-1) for part in packed])
    scales = np.concatenate([part.scales.reshape(-1) for part in packed])
    biases = np.concatenate([part.biases.reshape(-1) for part in packed])
    is_finite = np.isfinite(scales).all() and np.isfinite(biases).all()
    if not is_finite:  # too large to be a half
        return None
    lead = shape[:-1]
    return PackedWeight(
        weight=weight.reshape(*lead, -1),
        scales=scales.reshape(*lead, -1),
        biases=biases.reshape(*lead, -1),
        bits=packed[0].bits,
    )


def _packed(blocks: Bytes, form: BlockFormat, columns: int) -> PackedWeight:
    if form.name in AFFINE:
        split = AFFINE[form.name]
        return _from_affine(split(blocks))
    return _again(blocks, form, columns, _BITS_AGAIN[form.name])


def _chunks(
    blocks: Bytes,
    form: BlockFormat,
    shape: tuple[int, ...],
) -> Iterator[Bytes]:
    """Parts of the blocks that hold whole rows."""
    columns = shape[-1]
    row = columns // form.elements
    rows_at_once = max(1, _CHUNK_VALUES // columns)
    step = rows_at_once * row
    for start in range(0, len(blocks), step):
        yield blocks[start : start + step]


def _from_affine(parts: AffineBlocks) -> PackedWeight:
    codes = parts.codes.reshape(-1)
    with np.errstate(over="ignore"):
        return PackedWeight(
            weight=_pack(codes, parts.bits),
            scales=parts.scales.astype(np.float16),
            biases=parts.biases.astype(np.float16),
            bits=parts.bits,
        )


def _pack(codes: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes as one stream of bits; their number is a multiple of 32."""
    if bits == 8:
        raw = codes
    elif bits == 4:
        low = codes[::2]
        high = codes[1::2]
        raw = low | (high << 4)
    else:  # eight codes in as many bytes as a code has bits
        words = np.zeros(len(codes) // 8, dtype="<u8")
        for index in range(8):
            shift = np.uint64(index * bits)
            words |= codes[index::8].astype(np.uint64) << shift
        word_bytes = words.view(np.uint8).reshape(-1, 8)
        raw = word_bytes[:, :bits]
    stream = np.ascontiguousarray(raw).reshape(-1)
    return stream.view("<u4").astype(np.uint32, copy=False)


def _again(
    blocks: Bytes,
    form: BlockFormat,
    columns: int,
    bits: int,
) -> PackedWeight:
    """Blocks that are decoded, and quantized a second time."""
    rows = mx.array(form.decode(blocks).reshape(-1, columns))
    weight, scales, biases = mx.quantize(rows, group_size=GROUP_SIZE, bits=bits)
    with np.errstate(over="ignore"):
        return PackedWeight(
            weight=np.array(weight),
            scales=np.array(scales).astype(np.float16),
            biases=np.array(biases).astype(np.float16),
            bits=bits,
        )
