"""Repacks GGUF's Q4_0, Q4_1 and Q8_0 blocks as MLX's affine quantization, exactly, in groups of 32.

MLX keeps `value = code * scale + bias` with unsigned codes, the first code in a word's lowest bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`weight` is uint32 [..., columns * bits / 32]; `scales` and `biases` are float16 [..., columns / 32]."""

    weight: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]
    bits: int


def repack(blocks: npt.NDArray[np.uint8], encoding: str, shape: tuple[int, ...]) -> PackedWeight | None:
    """Blocks `[number, block bytes]` of a tensor of `shape` for MLX; None if the encoding has no exact twin there."""
    if encoding not in ("Q4_0", "Q4_1", "Q8_0"):
        return None
    scales = _halves(blocks[:, :2])
    if encoding == "Q8_0":
        bits, biases = 8, scales * np.float16(-128)
        codes = blocks[:, 2:] ^ 0x80  # int8 in two's complement plus 128, as uint8
    else:
        bits, start = 4, 2 if encoding == "Q4_0" else 4
        biases = scales * np.float16(-8) if encoding == "Q4_0" else _halves(blocks[:, 2:4])
        nibbles = np.concatenate([blocks[:, start:] & 0x0F, blocks[:, start:] >> 4], axis=1)
        codes = nibbles[:, ::2] | (nibbles[:, 1::2] << 4)
    if not np.isfinite(biases).all():  # a scale too large for its bias to be a half
        return None
    lead = shape[:-1]
    weight = np.ascontiguousarray(codes).view("<u4").astype(np.uint32, copy=False)
    groups = shape[-1] // GROUP_SIZE
    return PackedWeight(
        weight.reshape(*lead, shape[-1] * bits // 32),
        scales.reshape(*lead, groups),
        biases.reshape(*lead, groups),
        bits,
    )


def _halves(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(raw).view(np.float16)[:, 0]
