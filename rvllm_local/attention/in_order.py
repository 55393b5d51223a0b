"""Recurrent layers in a decode call of which several rows are tokens of one sequence.

Such a row begins with the state that the row before it ended with. What lies between a
layer's projections is computed once for each place in a sequence, over all rows: so the
shapes are those of a call without such rows, and each row's state stays known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.memory.layout import KVLayout, StateSlot

_MIXER = "linear_attn"  # a layer's part that keeps the state
_FIRST = "in_proj"  # how its projections of the layer's input begin
_LAST = "out_proj"

Depths = tuple[int, ...]


def token_depths(rows: Sequence[DecodeRow]) -> Depths | None:
    """How many rows before each one are of its sequence; None if none is anywhere."""
    depths: list[int] = []
    before: DecodeRow | None = None
    for row in rows:
        depth = 0
        # Start-up checks also have the same token several times.
        if (
            before is not None
            and row.tables is before.tables
            and row.position == before.position + 1
        ):
            depth = depths[-1] + 1
        depths.append(depth)
        before = row
    return tuple(depths) if any(depths) else None


def install_in_order(model: nn.Module) -> None:
    """Let recurrent layers take rows in order; safe to call again."""
    for cls in {type(mixer) for mixer in _mixers(model)}:
        call = cls.__call__
        if not hasattr(call, "in_order"):
            cls.__call__ = _in_order(call)


def takes_in_order(model: nn.Module, layout: KVLayout) -> bool:
    """True if every recurrent layer has a part that takes rows in order."""
    if not layout.has_state:
        return True
    num_layers = sum(isinstance(slot, StateSlot) for slot in layout.slots)
    return num_layers == len(_mixers(model))


def _mixers(model: nn.Module) -> list[nn.Module]:
    mixers = []
    for module in model.modules():
        mixer = module.get(_MIXER)
        if mixer is not None and _LAST in mixer:
            mixers.append(mixer)
    return mixers


def _in_order(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def call(
        self: nn.Module,
        inputs: mx.array,
        mask: mx.array | None = None,
        cache: Any = None,
    ) -> mx.array:
        depths = getattr(cache, "depths", None)
        if depths is None:
            return original(self, inputs, mask, cache)
        with _projected(self, inputs):
            mixed = _by_depth(self, original, inputs, cache, depths)
        output: mx.array = self.out_proj(mixed)
        return output

    call.in_order = True  # type: ignore[attr-defined]
    return call


def _by_depth(
    mixer: nn.Module,
    original: Callable[..., mx.array],
    inputs: mx.array,
    cache: Any,
    depths: Depths,
) -> mx.array:
    """What the rows are mixed to; the cache has the state after each row then."""
    from mlx_lm.models.cache import ArraysCache

    row_depths = np.array(depths)
    row_before = mx.array(np.maximum(np.arange(len(depths)) - 1, 0))
    part = ArraysCache(len(cache.cache))
    part.cache = list(cache.cache)
    mixed = original(mixer, inputs, None, part)
    after = part.cache
    for depth in range(1, max(depths) + 1):
        is_here = mx.array(row_depths == depth)
        part = ArraysCache(len(after))
        part.cache = [state[row_before] for state in after]
        mixed = _where(is_here, original(mixer, inputs, None, part), mixed)
        after = [
            _where(is_here, new, old)
            for new, old in zip(part.cache, after, strict=True)
        ]
    cache.cache = after
    return mixed


def _where(is_here: mx.array, new: mx.array, old: mx.array) -> mx.array:
    shape = (-1,) + (1,) * (new.ndim - 1)
    return mx.where(is_here.reshape(shape), new, old)


@contextlib.contextmanager
def _projected(mixer: nn.Module, inputs: mx.array) -> Iterator[None]:
    """Project the inputs once, however often the mixer is called meanwhile.

    Its results are not projected.
    """
    layers = {name: mixer[name] for name in mixer if name.startswith(_FIRST)}
    layers[_LAST] = mixer[_LAST]
    for name, layer in layers.items():
        if name == _LAST:
            mixer[name] = _as_it_is
        else:
            mixer[name] = _always(layer(inputs))
    try:
        yield
    finally:
        for name, layer in layers.items():
            mixer[name] = layer


def _as_it_is(values: mx.array) -> mx.array:
    return values


def _always(value: mx.array) -> Callable[[mx.array], mx.array]:
    return lambda _: value
