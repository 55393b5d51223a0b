"""Fewer operations a step, where launching them costs more than computing them (CUDA).

Projections of one input become one matrix product: q, k and v, an MLP's gate and up, and
those of gated delta nets.
Weights are kept transposed, as the products take them. Joining copies the weights, layer
by layer, so it is not for weights that are mapped from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

_TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
# A layer's arrays. All have the output along their first axis.
_PARTS = ("weight", "scales", "biases", "bias")
_SETTINGS = ("bits", "group_size", "mode")


def fuse_projections(model: nn.Module) -> int:
    """Fuse what can be fused in place; returns how many products became one."""
    fused = 0
    for module in model.modules():
        for names in _TOGETHER:
            layers = [module.get(name) for name in names]
            if _can_join(layers):
                shared = _SharedProduct(layers)
                for index, name in enumerate(names):
                    setattr(module, name, _Part(shared, index))
                fused += 1
    _transpose_weights(model)
    return fused


def _transpose_weights(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, layer in list(module.items()):
            if type(layer) is nn.Linear:
                setattr(module, name, _Transposed(layer))


def _can_join(layers: Sequence[Any]) -> bool:
    """True for plain or quantized linear layers of one kind, over one size of input."""
    if any(layer is None for layer in layers):
        return False
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):
        return False
    return all(_is_alike(layer, first) for layer in layers)


def _is_alike(layer: Any, first: Any) -> bool:
    if type(layer) is not type(first) or set(layer) != set(first):
        return False
    weight = layer["weight"]
    first_weight = first["weight"]
    if weight.shape[1:] != first_weight.shape[1:]:
        return False
    if weight.dtype != first_weight.dtype:
        return False
    for name in _SETTINGS:
        if getattr(layer, name, None) != getattr(first, name, None):
            return False
    return True


class _Transposed(nn.Module):  # type: ignore[misc]
    """A linear layer whose transposed weight is a view that is made once.

    Otherwise it would be an operation of every step. The view has the shape
    `[1, in, out]`: for a matrix of two dimensions MLX flattens an input of three and
    shapes the result anew, which is two more operations.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer["weight"]
        self._bias = layer.get("bias")
        self._transposed = self.weight.T
        self._batched = self._transposed[None]
        mx.eval(self._transposed, self._batched)

    def __call__(self, x: mx.array) -> mx.array:
        weight = self._transposed
        if x.ndim == 3:
            weight = self._batched
        if self._bias is None:
            product: mx.array = x @ weight
        else:
            product = mx.addmm(self._bias, x, weight)
        return product


class _SharedProduct:
    """The joint layer, and its result until each part has been taken."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layer = layers[0]
        self._cuts: list[int] = []  # where the outputs of all but the first begin
        outputs = 0
        for layer in layers[:-1]:
            outputs += layer["weight"].shape[0]
            self._cuts.append(outputs)
        for name in _PARTS:
            if name in self._layer:
                arrays = [layer[name] for layer in layers]
                self._layer[name] = mx.concatenate(arrays, axis=0)
                mx.eval(self._layer[name])
        if type(self._layer) is nn.Linear:
            self._layer = _Transposed(self._layer)
        self._input: mx.array | None = None
        self._outputs: list[mx.array] = []
        self._left: set[int] = set()

    @property
    def layer(self) -> Any:
        """The joint layer itself."""
        return self._layer

    def take(self, x: mx.array, index: int) -> mx.array:
        """One part's output; the product is computed when the first part asks for it."""
        if self._input is not x or index not in self._left:
            self._input = x
            joint = self._layer(x)
            self._outputs = list(mx.split(joint, self._cuts, axis=-1))
            self._left = set(range(len(self._outputs)))
        self._left.discard(index)
        output = self._outputs[index]
        if not self._left:  # keep no activation alive
            self._input = None
            self._outputs = []
        return output


class _Part(nn.Module):  # type: ignore[misc]
    """Stands in for one of the projections."""

    def __init__(self, shared: _SharedProduct, index: int) -> None:
        super().__init__()
        self._shared = shared
        self._index = index

    @property
    def joined_layer(self) -> Any:
        """The layer that multiplies for this part and its siblings."""
        return self._shared.layer

    def __call__(self, x: mx.array) -> mx.array:
        return self._shared.take(x, self._index)
