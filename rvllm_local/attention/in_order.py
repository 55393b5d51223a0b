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
    depth = 0
    before: DecodeRow | None = None
    for row in rows:
        if before is not None and _follows(row, before):
            depth += 1
        else:
            depth = 0
        depths.append(depth)
        before = row
    if not any(depths):
        return None
    return tuple(depths)


def _follows(row: DecodeRow, before: DecodeRow) -> bool:
    """Start-up checks also have the same token of a sequence several times."""
    if row.tables is not before.tables:
        return False
    return row.position == before.position + 1


def install_in_order(model: nn.Module) -> None:
    """Let recurrent layers take rows in order; safe to call again."""
    classes = {type(mixer) for mixer in _mixers(model)}
    for cls in classes:
        call = cls.__call__
        if not hasattr(call, "in_order"):
            cls.__call__ = _in_order(call)


def takes_in_order(model: nn.Module, layout: KVLayout) -> bool:
    """True if every recurrent layer has a part that takes rows in order."""
    if not layout.has_state:
        return True
    num_layers = 0
    for slot in layout.slots:
        if isinstance(slot, StateSlot):
            num_layers += 1
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
    numbers = np.arange(len(depths))
    row_before = mx.array(np.maximum(numbers - 1, 0))
    row_depths = mx.array(np.array(depths))
    part = _cache_with(cache.cache)
    mixed = original(mixer, inputs, None, part)
    after = part.cache
    for depth in range(1, max(depths) + 1):
        begun = [state[row_before] for state in after]
        part = _cache_with(begun)
        is_here = row_depths == depth
        mixed = _where(
            is_here,
            original(mixer, inputs, None, part),
            mixed,
        )
        after = _all_where(is_here, part.cache, after)
    cache.cache = after
    return mixed


def _cache_with(state: Sequence[mx.array | None]) -> Any:
    """A cache that is nobody's, so that a layer computes by its definition."""
    from mlx_lm.models.cache import ArraysCache

    cache = ArraysCache(len(state))
    cache.cache = list(state)
    return cache


def _all_where(
    is_here: mx.array,
    new: Sequence[mx.array],
    old: Sequence[mx.array],
) -> list[mx.array]:
    states = []
    for of_new, of_old in zip(new, old, strict=True):
        states.append(_where(is_here, of_new, of_old))
    return states


def _where(
    is_here: mx.array,
    new: mx.array,
    old: mx.array,
) -> mx.array:
    """The rows that are here from `new`, the others from `old`."""
    width = (1,) * (new.ndim - 1)
    is_row_here = is_here.reshape(-1, *width)
    return mx.where(is_row_here, new, old)


@contextlib.contextmanager
def _projected(
    mixer: nn.Module,
    inputs: mx.array,
) -> Iterator[None]:
    """Project the inputs once, however often the mixer is called meanwhile.

    Its results are not projected.
    """
    layers = {}
    for name in mixer:
        if name.startswith(_FIRST):
            layers[name] = mixer[name]
    for name, layer in layers.items():
        projected = layer(inputs)
        mixer[name] = _always(projected)
    layers[_LAST] = mixer[_LAST]
    mixer[_LAST] = _as_it_is
    try:
        yield
    finally:
        for name, layer in layers.items():
            mixer[name] = layer


def _as_it_is(values: mx.array) -> mx.array:
    return values


def _always(value: mx.array) -> Callable[[mx.array], mx.array]:
    def project(_: mx.array) -> mx.array:
        return value

    return project
