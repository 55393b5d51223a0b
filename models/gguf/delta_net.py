"""Qwen 3.5's recurrent layers: how llama.cpp's converter stores them, undone.

It parts the heads of values by their place within a group, so that ggml can repeat keys;
definitions have them group by group. It stores the decay itself and not its logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_HEADS_ARE_ROWS = ("ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias")
_VALUES_ARE_ROWS = ("attn_gate.weight",)
_VALUES_ARE_LAST_ROWS = ("attn_qkv.weight", "ssm_conv1d.weight")
_VALUES_ARE_COLUMNS = ("ssm_out.weight",)


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """The heads of a recurrent layer, and the width of a value's."""

    key_heads: int
    value_heads: int
    value_rows: int

    def ordered(self, part: str, values: Array) -> Array:
        """A tensor's rows, or packed columns, with the heads group by group.

        `part` is the tensor's name within its layer, which may have keys in its first
        rows.
        """
        if self.key_heads == self.value_heads:
            return values
        if part in _HEADS_ARE_ROWS or part in _VALUES_ARE_ROWS:
            return self._grouped(values)
        if part in _VALUES_ARE_LAST_ROWS:
            first = len(values) - self.value_rows
            return np.concatenate([values[:first], self._grouped(values[first:])])
        if part in _VALUES_ARE_COLUMNS:
            columns = np.moveaxis(values, 1, 0)
            return np.ascontiguousarray(np.moveaxis(self._grouped(columns), 0, 1))
        return values

    def _grouped(self, rows: Array) -> Array:
        per_key = self.value_heads // self.key_heads
        rest = rows.shape[1:]
        heads = rows.reshape(per_key, self.key_heads, -1, *rest)
        grouped = np.ascontiguousarray(heads.swapaxes(0, 1))
        return grouped.reshape(rows.shape)


def logarithm_of_decay(stored: Array) -> Array:
    """What the definition keeps, of the negative decay that the file has."""
    logarithm: Array = np.log(-stored)
    return logarithm
