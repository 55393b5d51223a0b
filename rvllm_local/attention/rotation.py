"""Rotary embedding that waits for the attention kernel: in a compiled step a model's rotation only notes what to do.

The kernel turns queries and new keys as it reads them, by a table of cosines and sines that is made once a step. What
happens between a rotation and attention must commute with it; the load-time self-check finds models where it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels import Rotation


class Rotary(nn.Module):  # type: ignore[misc]
    """Stands where a model's rotation was, and is that rotation for every offset but a `LayerOffset`."""

    def __init__(
        self, inner: nn.Module, dims: int, *, pairs: bool, frequencies: mx.array
    ) -> None:
        super().__init__()
        self.inner, self.dims, self.pairs = inner, dims, pairs
        self._frequencies = frequencies
        mx.eval(self._frequencies)
        self.key = (dims, pairs, np.array(frequencies).tobytes())

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
    """The place of a step's new tokens, and the tables made for it so far. `table` makes one of a rotation's frequencies."""

    def __init__(self, table: Callable[[mx.array], mx.array]) -> None:
        self._table = table
        self._rotations: dict[object, Rotation] = {}

    def rotation(self, rotary: Rotary) -> Rotation:
        if rotary.key not in self._rotations:
            self._rotations[rotary.key] = Rotation(
                self._table(rotary.frequencies), rotary.pairs
            )
        return self._rotations[rotary.key]


class LayerOffset:
    """What one layer finds as its cache's offset. Nothing but a `Rotary` can use it."""

    def __init__(self, step: StepOffset) -> None:
        self._step = step
        self._noted: list[tuple[Rotary, int]] = []

    def note(self, rotary: Rotary, width: int) -> None:
        """Something of `width` elements a head is to be rotated."""
        self._noted.append((rotary, width))

    @property
    def waits(self) -> bool:
        return bool(self._noted)

    def take(self, count: int, width: int) -> Rotation | None:
        """The rotation of the `count` arrays (queries, and keys if they are new) that attention is about to read.

        Raises `UnsupportedModelError` unless all or none of them are to be rotated, whole and alike.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return None
        if (
            len(noted) != count
            or len({rotary.key for rotary, _ in noted}) > 1
            or any(w != width for _, w in noted)
        ):
            raise UnsupportedModelError(
                "a layer rotates its queries and keys differently; the model rotates them itself"
            )
        return self._step.rotation(noted[0][0])


def install_rotations(model: nn.Module) -> int:
    """Put a `Rotary` in the place of every rotation that the kernels know; returns how many there are now."""
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.items()):
            if isinstance(child, Rotary):
                count += 1
            elif (
                isinstance(child, nn.Module) and (rotary := _rotary(child)) is not None
            ):
                setattr(module, name, rotary)
                count += 1
    return count


def _rotary(rope: nn.Module) -> Rotary | None:
    """The stand-in for plain and Llama 3 rotations; None for what scales or mixes besides."""
    kind = type(rope).__name__
    if type(rope) is nn.RoPE:
        exponents = -np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims
        frequencies = rope.scale * np.float64(rope.base) ** exponents
    elif kind == "Llama3RoPE":
        frequencies = 1.0 / np.array(rope._freqs.astype(mx.float32)).astype(np.float64)
    else:
        return None
    return Rotary(
        rope,
        rope.dims,
        pairs=rope.traditional,
        frequencies=mx.array(frequencies.astype(np.float32)),
    )
