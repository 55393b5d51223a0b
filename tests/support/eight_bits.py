"""Packs matrices as FP8 repositories and compressed-tensors are described to, with numpy.

Codes come from a generator; what they stand for is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def float8_values() -> Array:
    """What each byte stands for: a sign, four bits of exponent, three of mantissa."""
    codes = np.arange(256)
    exponents = (codes >> 3) & 15
    mantissas = codes & 7
    small = exponents == 0
    sizes = np.where(
        small, mantissas * 2.0**-9, (8 + mantissas) * 2.0 ** (exponents - 10.0)
    )
    values = np.where(codes & 128, -sizes, sizes)
    values[(codes & 127) == 127] = np.nan
    return values


@dataclass(frozen=True)
class Floats:
    """A matrix `[..., out, in]` of bytes, and scales for blocks of it."""

    codes: Array
    scales: Array
    block: tuple[int, int]

    @classmethod
    def random(
        cls, shape: tuple[int, ...], block: tuple[int, int], seed: int = 0
    ) -> Floats:
        random = np.random.default_rng(seed)
        codes = random.integers(0, 120, shape, dtype=np.uint8)
        codes |= random.integers(0, 2, shape, dtype=np.uint8) << 7
        rows, columns = min(block[0], shape[-2]), min(block[1], shape[-1])
        counts = [-(-shape[-2] // rows), -(-shape[-1] // columns)]
        size = 0.002 / np.sqrt(shape[-1])
        scales = size * random.uniform(0.5, 1.5, (*shape[:-2], *counts))
        return cls(codes, scales.astype(np.float32), (rows, columns))

    @property
    def weight(self) -> Array:
        rows, columns = self.codes.shape[-2:]
        wide = np.repeat(self.scales.astype(np.float64), self.block[0], axis=-2)
        wide = np.repeat(wide, self.block[1], axis=-1)[..., :rows, :columns]
        values: Array = float8_values()[self.codes] * wide
        return values


@dataclass(frozen=True)
class Small:
    """A matrix `[out, in]` of 4-bit floats; `scales` are bytes, `[out, groups]`.

    A scale is an 8-bit float, or a power of two (e8m0) for groups of 32.
    """

    codes: Array
    scales: Array
    factor: float

    @classmethod
    def random(cls, shape: tuple[int, int], group: int, seed: int = 0) -> Small:
        random = np.random.default_rng(seed)
        rows, columns = shape
        codes = random.integers(0, 16, shape, dtype=np.uint8)
        counts = (rows, columns // group)
        if group == 32:
            scales = random.integers(118, 123, counts, dtype=np.uint8)
            return cls(codes, scales, 1.0)
        scales = random.integers(40, 80, counts, dtype=np.uint8)
        factor = np.float32(0.02 / np.sqrt(columns))
        return cls(codes, scales, float(factor))

    @property
    def weight(self) -> Array:
        sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        group = self.codes.shape[1] // self.scales.shape[1]
        if group == 32:
            scales = 2.0 ** (self.scales.astype(np.float64) - 127)
        else:
            scales = float8_values()[self.scales]
        wide = np.repeat(scales, group, axis=1) * self.factor
        values: Array = np.concatenate([sizes, -sizes])[self.codes] * wide
        return values

    @property
    def packed(self) -> Array:
        """Two codes in a byte, the first in its lower bits."""
        pairs: Array = self.codes[:, ::2] | (self.codes[:, 1::2] << 4)
        return pairs


@dataclass(frozen=True)
class Whole:
    """A matrix of signed codes `[out, in]`; zeros and scales are `[out, groups]`.

    groups: each input's group, where these are not side by side.
    """

    codes: Array
    zeros: Array
    scales: Array
    bits: int
    groups: Array | None = None

    @classmethod
    def random(cls, rows: int, columns: int, **how: Any) -> Whole:
        """how: `bits`, `group` (inputs), `symmetric`, `by_activation`, `seed`."""
        random = np.random.default_rng(how.get("seed", 0))
        bits = how.get("bits", 4)
        half = 1 << (bits - 1)
        groups = columns // how.get("group", 32)
        codes = random.integers(-half, half, (rows, columns))
        zeros = random.integers(-half, half, (rows, groups))
        if how.get("symmetric", True):
            zeros = np.zeros_like(zeros)
        size = 1.6 / np.sqrt(columns) / (1 << bits)
        scales = (size * random.uniform(0.5, 1.5, zeros.shape)).astype(np.float16)
        if not how.get("by_activation"):
            return cls(codes, zeros, scales, bits)
        of_inputs = np.arange(columns, dtype=np.int32) * groups // columns
        return cls(codes, zeros, scales, bits, random.permutation(of_inputs))

    @property
    def weight(self) -> Array:
        groups = self.groups
        if groups is None:
            columns = self.codes.shape[1]
            groups = np.arange(columns) * self.scales.shape[1] // columns
        zeros = self.zeros[:, groups].astype(np.float64)
        scales = self.scales[:, groups].astype(np.float64)
        values: Array = (self.codes - zeros) * scales
        return values

    def packed(self, *, symmetric: bool) -> dict[str, Array]:
        """The layout pack-quantized: words along the inputs, zeros' along the outputs."""
        parts = {
            "weight_packed": _words(self.codes, self.bits),
            "weight_scale": self.scales,
            "weight_shape": np.array(self.codes.shape, dtype=np.int64),
        }
        if not symmetric:
            parts["weight_zero_point"] = _words(self.zeros.T, self.bits).T
        if self.groups is not None:
            parts["weight_g_idx"] = self.groups
        return parts


def _words(codes: Array, bits: int) -> Array:
    """Words of the last axis' signed codes, raised to be positive, the first lowest."""
    each = 32 // bits
    raised = (codes + (1 << (bits - 1))).astype(np.uint64)
    raised = np.pad(raised, ((0, 0), (0, -raised.shape[1] % each)))
    grouped = raised.reshape(len(raised), -1, each)
    words = np.zeros(grouped.shape[:2], dtype=np.uint64)
    for index in range(each):
        words |= grouped[..., index] << np.uint64(bits * index)
    return np.ascontiguousarray(words.astype(np.uint32).view(np.int32))
