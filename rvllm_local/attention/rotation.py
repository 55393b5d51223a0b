"""Rotary embedding that waits for the attention kernel.

In a compiled step a model's rotation only notes what is to be rotated. The kernel turns
queries and new keys as it reads them, by a table of cosines and sines that is made once
a step. What happens between a rotation and attention must commute with it: the
load-time self-check finds models where it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import Rotation

# mlx-lm's rotations with periods of their own, and the name of the factor that each
# multiplies what it turns by.
_GAINS: dict[str, str | None] = {
    "Llama3RoPE": None,
    "ProportionalRoPE": None,
    "SuScaledRoPE": "_scale",
    "YarnRoPE": "mscale",
}


class Rotary(nn.Module):  # type: ignore[misc]
    """Stands in for a model's rotation.

    It is that rotation for every offset but a `LayerOffset`.
    """

    def __init__(
        self,
        inner: nn.Module,
        dims: int,
        *,
        pairs: bool,
        frequencies: mx.array,
        gain: float = 1.0,
    ) -> None:
        """The first `dims` elements are also multiplied by `gain`."""
        super().__init__()
        self.inner = inner
        self.dims = dims
        self.pairs = pairs
        self.gain = gain
        self._frequencies = frequencies
        mx.eval(self._frequencies)
        frequency_bytes = np.array(frequencies).tobytes()
        self.key = (dims, pairs, gain, frequency_bytes)

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        if isinstance(offset, LayerOffset):
            offset.note(self, x.shape[-1])
            return x
        turned: mx.array = self.inner(x, offset=offset)
        return turned

    @property
    def frequencies(self) -> mx.array:
        """Radians a position: float32 `[dims / 2]`."""
        return self._frequencies


class StepOffset:
    """The positions of a step's new tokens, and the tables made for them so far.

    `table` makes the table of a rotation's frequencies.
    """

    def __init__(self, table: Callable[[mx.array], mx.array]) -> None:
        self._table = table
        self._rotations: dict[object, Rotation] = {}

    def rotation(self, rotary: Rotary) -> Rotation:
        rotation = self._rotations.get(rotary.key)
        if rotation is None:
            table = self._table(rotary.frequencies)
            if rotary.gain != 1.0:
                table = table * rotary.gain
            rotation = Rotation(table, rotary.pairs)
            self._rotations[rotary.key] = rotation
        return rotation


class LayerOffset:
    """The offset of one layer's cache. Nothing but a `Rotary` can use it."""

    def __init__(self, step: StepOffset) -> None:
        self._step = step
        self._noted: list[tuple[Rotary, int]] = []

    def note(self, rotary: Rotary, width: int) -> None:
        """Note that an array of `width` elements a head is to be rotated."""
        self._noted.append((rotary, width))

    @property
    def waits(self) -> bool:
        return bool(self._noted)

    def take(self, count: int, width: int) -> Rotation | None:
        """The rotation of the `count` arrays that attention is about to read.

        They are the queries, and the keys if those are new. Raises
        `UnsupportedModelError` unless all or none are to be rotated, whole and alike.
        """
        noted = self._noted
        self._noted = []
        if not noted:
            return None
        first, _ = noted[0]
        alike = len(noted) == count
        for rotary, noted_width in noted:
            if rotary.key != first.key or noted_width != width:
                alike = False
        if not alike:
            raise UnsupportedModelError(
                "a layer rotates its queries and keys differently; "
                "the model rotates them itself"
            )
        return self._step.rotation(first)


def install_rotations(model: nn.Module) -> int:
    """Replace every rotation that the kernels know by a `Rotary`.

    Returns how many there are now.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.items()):
            if isinstance(child, Rotary):
                count += 1
                continue
            if not isinstance(child, nn.Module):
                continue
            rotary = _rotary(child)
            if rotary is not None:
                setattr(module, name, rotary)
                count += 1
    return count


def _rotary(rope: nn.Module) -> Rotary | None:
    """The stand-in for a rotation by fixed frequencies; None for others."""
    gain = 1.0
    if type(rope) is nn.RoPE:
        dims = rope.dims
        exponents = -np.arange(0, dims, 2, dtype=np.float64) / dims
        frequencies = rope.scale * np.float64(rope.base) ** exponents
    elif type(rope).__name__ in _GAINS:
        stored = rope._freqs.astype(mx.float32)
        periods = np.array(stored).astype(np.float64)
        frequencies = 1.0 / periods  # 0 for those that do not turn
        dims = 2 * periods.size
        gain_name = _GAINS[type(rope).__name__]
        if gain_name is not None:
            gain = float(getattr(rope, gain_name))
    else:
        return None
    rounded = frequencies.astype(np.float32)
    return Rotary(
        rope,
        dims,
        pairs=getattr(rope, "traditional", False),
        frequencies=mx.array(rounded),
        gain=gain,
    )
