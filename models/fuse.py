"""Fewer operations a step, where describing and launching them costs more than computing them (CUDA).

Joins projections of one input into one matrix product (q, k and v, and an MLP's gate and up), and keeps weights turned as
the products take them. Joining copies the weights, layer by layer, so it is not for weights that are mapped from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_PARTS = (
    "weight",
    "scales",
    "biases",
    "bias",
)  # all have the output along their first axis


def fuse_projections(model: nn.Module) -> int:
    """Fuse what can be fused in place; returns how many products became one."""
    fused = 0
    for module in model.modules():
        for names in _TOGETHER:
            layers = [module.get(name) for name in names]
            if all(layer is not None for layer in layers) and _alike(layers):
                shared = _SharedProduct(layers)
                for place, name in enumerate(names):
                    setattr(module, name, _Part(shared, place))
                fused += 1
    _turn_weights(model)
    return fused


def _turn_weights(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, layer in list(module.items()):
            if type(layer) is nn.Linear:
                setattr(module, name, _Turned(layer))


def _alike(layers: Sequence[Any]) -> bool:
    """Plain or quantized linear layers of one kind, over inputs of one size."""
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):
        return False
    return all(
        type(layer) is type(first)
        and set(layer) == set(first)
        and layer["weight"].shape[1:] == first["weight"].shape[1:]
        and layer["weight"].dtype == first["weight"].dtype
        and all(
            getattr(layer, name, None) == getattr(first, name, None)
            for name in ("bits", "group_size", "mode")
        )
        for layer in layers
    )


class _Turned(nn.Module):  # type: ignore[misc]
    """A linear layer whose transposed weight is a view made once, not an operation of every step.

    It has the shape `[1, in, out]`, since MLX flattens an input of three dimensions for a matrix of two and shapes the
    result anew: two more operations.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer["weight"]
        self._bias = layer.get("bias")
        self._turned = self.weight.T
        self._batched = self._turned[None]
        mx.eval(self._turned, self._batched)

    def __call__(self, x: mx.array) -> mx.array:
        turned = self._batched if x.ndim == 3 else self._turned
        return x @ turned if self._bias is None else mx.addmm(self._bias, x, turned)


class _SharedProduct:
    """The joint layer, and its result until each part has been taken."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layer = layers[0]
        sizes = [layer["weight"].shape[0] for layer in layers]
        self._cuts = [sum(sizes[: place + 1]) for place in range(len(sizes) - 1)]
        for name in _PARTS:
            if name in self._layer:
                self._layer[name] = mx.concatenate(
                    [layer[name] for layer in layers], axis=0
                )
                mx.eval(self._layer[name])
        if type(self._layer) is nn.Linear:
            self._layer = _Turned(self._layer)
        self._input: mx.array | None = None
        self._outputs: list[mx.array] = []
        self._left: set[int] = set()

    @property
    def layer(self) -> Any:
        """The joint layer itself."""
        return self._layer

    def take(self, x: mx.array, place: int) -> mx.array:
        if self._input is not x or place not in self._left:
            self._input = x
            self._outputs = list(mx.split(self._layer(x), self._cuts, axis=-1))
            self._left = set(range(len(self._outputs)))
        self._left.discard(place)
        output = self._outputs[place]
        if not self._left:  # keep no activation alive
            self._input, self._outputs = None, []
        return output


class _Part(nn.Module):  # type: ignore[misc]
    """Stands where one of the projections was."""

    def __init__(self, shared: _SharedProduct, place: int) -> None:
        super().__init__()
        self._shared = shared
        self._place = place

    @property
    def joined_layer(self) -> Any:
        """The layer that multiplies for this part and its siblings."""
        return self._shared.layer

    def __call__(self, x: mx.array) -> mx.array:
        return self._shared.take(x, self._place)
