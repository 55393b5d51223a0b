"""Quantized layers as they are stored, multiplied in float32.

That is exact, and slow, since each call widens the weights. They stand in a model between
its loading and its packing, so that its shapes and its logits can be had in float32
without a float32 copy of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.models.cpu.packed import (
    PackedMatrix,
    block_of,
    pack,
    refusal,
    stored_bits,
)
from rvllm_local.models.to_float32 import widened_layer

# What a block takes beside its codes, and a group: its scale or its offset, and what
# the product keeps of it.
_PRODUCT_BYTES = 8
_LOOKUP_BYTES = 4


class StoredLinear(nn.Module):  # type: ignore[misc]
    """Stands in for a quantized linear layer. `take` ends its use."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rounds = False

    def __call__(self, x: mx.array) -> mx.array:
        outputs = self.as_linear(x)
        if "bias" in self.inner:
            outputs = outputs + self.inner.bias
        return outputs

    def as_linear(self, x: mx.array) -> mx.array:
        """The product, without a bias."""
        weight = _dequantized(self.inner)
        product: mx.array = _inputs(self, x) @ weight.T
        return product

    def take(self) -> PackedMatrix:
        """The packed matrix; what was stored is freed."""
        matrix = pack(self.inner)
        for name in ("weight", "scales", "biases"):
            self.inner.pop(name, None)
        return matrix


class StoredEmbedding(nn.Module):  # type: ignore[misc]
    """Stands in for a quantized embedding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rounds = False

    def __call__(self, tokens: mx.array) -> mx.array:
        rows = {}
        for name in ("weight", "scales", "biases"):
            if name in self.inner:
                rows[name] = self.inner[name][tokens]
        return _dequantized(self.inner, rows)

    as_linear = StoredLinear.as_linear
    take = StoredLinear.take


@contextlib.contextmanager
def half_rounded(module: nn.Module) -> Iterator[None]:
    """Round the inputs of the second half of a call's rows while this is open.

    They are rounded to int8, as the packed product does. So one call shows what rounding
    changes, and weights are widened once for both.
    """
    stand_ins = [part for part in module.modules() if _is_stand_in(part)]
    for stand_in in stand_ins:
        stand_in.rounds = True
    try:
        yield
    finally:
        for stand_in in stand_ins:
            stand_in.rounds = False


def _inputs(layer: Any, x: mx.array) -> mx.array:
    if not layer.rounds:
        return x
    half = x.shape[0] // 2
    exact = x[:half]
    rounded = _rounded(x[half:], block_of(layer.inner.group_size))
    return mx.concatenate([exact, rounded])


def _rounded(x: mx.array, block: int) -> mx.array:
    """The inputs in steps of 1/127 of each block's largest."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    largest = mx.max(mx.abs(blocks), axis=-1, keepdims=True)
    steps = largest / 127
    codes = mx.round(blocks / mx.maximum(steps, 1e-30))
    rounded = codes * steps
    # Offsets are multiplied by sums that are not rounded: a block keeps its sum.
    missing = mx.mean(blocks - rounded, axis=-1, keepdims=True)
    kept: mx.array = rounded + missing
    return kept.reshape(x.shape)


def _dequantized(
    layer: nn.Module,
    rows: dict[str, mx.array] | None = None,
) -> mx.array:
    """A layer's matrix in float32, or those rows of it."""
    source = layer
    if rows is not None:
        source = rows
    weight = source["weight"]
    scales = source["scales"]
    biases = source.get("biases")
    if mx.issubdtype(scales.dtype, mx.floating):
        scales = scales.astype(mx.float32)  # the result has its type
    if biases is not None:
        biases = biases.astype(mx.float32)
    values: mx.array = mx.dequantize(
        weight,
        scales,
        biases,
        layer.group_size,
        layer.bits,
        mode=layer.mode,
    )
    return values.astype(mx.float32)


def keep_stored(module: nn.Module) -> tuple[str, ...]:
    """Put the stand-ins in place, in a module that was loaded as its files have it.

    What the operator cannot hold becomes float32. Returns the reasons, one a kind. Raises
    `UnsupportedModelError` as `widen_to_float32` does.
    """
    leaves = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    reasons: dict[str, int] = {}
    for path, layer in leaves:
        if not hasattr(layer, "bits"):
            continue
        reason = _reason(layer)
        if reason is None:
            replacement = _stand_in(layer)
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
            replacement = widened_layer(path, layer)
        module.update_modules(tree_unflatten([(path, replacement)]))
    _widen_floats(module)
    notes = []
    for reason, count in reasons.items():
        notes.append(f"{count} quantized layers are in float32: {reason}")
    return tuple(notes)


def _stand_in(layer: nn.Module) -> nn.Module:
    if type(layer).__name__ == "QuantizedEmbedding":
        return StoredEmbedding(layer)
    return StoredLinear(layer)


def _reason(layer: nn.Module) -> str | None:
    """Why the operator cannot hold this layer; None if it can."""
    kind = type(layer).__name__
    if kind not in ("QuantizedLinear", "QuantizedEmbedding"):
        return f"{kind} is not packed"
    return refusal(layer)


def _widen_floats(module: nn.Module) -> None:
    """float32 for what is not packed: norms, biases, plain matrices."""
    for part in module.modules():
        if _is_stand_in(part) or hasattr(part, "bits"):
            continue
        for name, value in list(part.items()):
            is_array = isinstance(value, mx.array)
            if is_array and mx.issubdtype(value.dtype, mx.floating):
                part[name] = value.astype(mx.float32)


def has_stored(module: nn.Module) -> bool:
    """True for a module with stand-ins in it."""
    return any(_is_stand_in(part) for part in module.modules())


def packed_bytes(module: nn.Module) -> int:
    """The most that the module's weights take once they are packed."""
    total = 0
    for part in module.modules():
        if _is_stand_in(part):
            layer = part.inner
            groups = layer["scales"].size
            values = groups * layer.group_size
            blocks = values // block_of(layer.group_size)
            codes = values * stored_bits(layer.bits) // 8
            total += codes + _PRODUCT_BYTES * (blocks + groups)
            if isinstance(part, StoredEmbedding):  # looked up, and perhaps the head
                total += codes + _LOOKUP_BYTES * (blocks + groups)
        elif not hasattr(part, "bits"):
            for value in part.values():
                if isinstance(value, mx.array):
                    total += value.nbytes
    return total


def _is_stand_in(part: nn.Module) -> bool:
    return isinstance(part, StoredLinear | StoredEmbedding)
