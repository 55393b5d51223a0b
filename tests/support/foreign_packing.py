"""Packs matrices as AWQ and GPTQ are described to pack them, with numpy alone.

Codes and zeros come from a generator; what they stand for is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# The output that each four bits of AWQ's word hold, the lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Coded:
    """A linear layer: codes `[in, out]`, zeros and scales `[groups, out]`.

    groups: each input's group.
    """

    codes: Array
    zeros: Array
    scales: Array
    bits: int
    groups: Array

    @classmethod
    def random(cls, rows: int, columns: int, **how: Any) -> Coded:
        """how: `bits`, `group` (inputs), `symmetric`, `by_activation`, `seed`."""
        random = np.random.default_rng(how.get("seed", 0))
        bits = how.get("bits", 4)
        group = how.get("group", 32)
        groups = rows // group
        codes = random.integers(0, 1 << bits, (rows, columns))
        zeros = random.integers(1, 1 << bits, (groups, columns))
        if how.get("symmetric"):
            zeros = np.full_like(zeros, 1 << (bits - 1))
        size = 1.6 / np.sqrt(rows) / (1 << bits)
        scales = (size * random.uniform(0.5, 1.5, zeros.shape)).astype(np.float16)
        of_inputs = np.arange(rows, dtype=np.int32) // group
        if how.get("by_activation"):
            of_inputs = random.permutation(of_inputs)
        return cls(codes, zeros, scales, bits, of_inputs)

    @property
    def weight(self) -> Array:
        """`[out, in]`, in float64."""
        zeros = self.zeros[self.groups].astype(np.float64)
        scales = self.scales[self.groups].astype(np.float64)
        values: Array = (self.codes - zeros) * scales
        return values.T


def _joined(parts: Array, bits: int) -> Array:
    """int32 of the last axis' codes, the first in the lowest bits."""
    words = np.zeros(parts.shape[:-1], dtype=np.uint64)
    for index in range(parts.shape[-1]):
        words |= parts[..., index].astype(np.uint64) << np.uint64(bits * index)
    return words.astype(np.uint32).view(np.int32)


def awq(layer: Coded) -> dict[str, Array]:
    """The GEMM layout: eight outputs a word."""

    def packed(codes: Array) -> Array:
        by_word = codes.reshape(len(codes), -1, 8)
        return _joined(by_word[..., list(AWQ_ORDER)], 4)

    return {
        "qweight": packed(layer.codes),
        "qzeros": packed(layer.zeros),
        "scales": layer.scales,
    }


def gptq(layer: Coded, version: int = 1) -> dict[str, Array]:
    """Inputs packed down, zeros packed across; the first version stores zeros less 1."""
    each = 32 // layer.bits
    rows, columns = layer.codes.shape
    down = layer.codes.reshape(rows // each, each, columns).swapaxes(1, 2)
    zeros = layer.zeros
    if version == 1:
        zeros = zeros - 1
    across = zeros.reshape(len(zeros), -1, each)
    return {
        "qweight": _joined(down, layer.bits),
        "qzeros": _joined(across, layer.bits),
        "scales": layer.scales,
        "g_idx": layer.groups,
    }
