"""Quantized layers as they are stored, multiplied in float32: exact, and slow, since each call widens the weights.

They stand in a model between its loading and its packing, so that its shapes and its logits can be had in float32
without a float32 copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.models.cpu.packed import PackedMatrix, pack, refusal
from rvllm_local.models.to_float32 import widened_layer


class StoredLinear(nn.Module):  # type: ignore[misc]
    """Stands where a quantized linear layer was. `take` ends its use."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        outputs: mx.array = x @ _dequantized(self.inner).T
        return outputs + self.inner.bias if "bias" in self.inner else outputs

    def take(self) -> PackedMatrix:
        """The packed matrix; what was stored is freed."""
        matrix = pack(self.inner)
        for name in ("weight", "scales", "biases"):
            self.inner.pop(name, None)
        return matrix

    @property
    def bias(self) -> mx.array | None:
        bias: mx.array | None = self.inner.get("bias")
        return bias


class StoredEmbedding(nn.Module):  # type: ignore[misc]
    """Stands where a quantized embedding was."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, tokens: mx.array) -> mx.array:
        rows = {name: self.inner[name][tokens] for name in _parts(self.inner)}
        return _dequantized(self.inner, rows)

    def as_linear(self, x: mx.array) -> mx.array:
        outputs: mx.array = x @ _dequantized(self.inner).T
        return outputs

    take = StoredLinear.take


def _parts(layer: nn.Module) -> list[str]:
    return [name for name in ("weight", "scales", "biases") if name in layer]


def _dequantized(
    layer: nn.Module, parts: dict[str, mx.array] | None = None
) -> mx.array:
    source = layer if parts is None else parts
    scales, biases = source["scales"], source.get("biases")
    if mx.issubdtype(scales.dtype, mx.floating):
        scales = scales.astype(mx.float32)  # the result has its type
    if biases is not None:
        biases = biases.astype(mx.float32)
    values: mx.array = mx.dequantize(
        source["weight"], scales, biases, layer.group_size, layer.bits, mode=layer.mode
    )
    return values.astype(mx.float32)


def keep_stored(module: nn.Module) -> Sequence[str]:
    """Put the stand-ins in place, in a module that was loaded as its files have it.

    What the operator cannot hold becomes float32; the reasons are returned, one a kind. Raises
    `UnsupportedModelError` as `widen_to_float32` does.
    """
    leaves = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    reasons: dict[str, int] = {}
    for path, layer in leaves:
        if not hasattr(layer, "bits"):
            continue
        reason = _reason(layer)
        if reason is None:
            is_embedding = type(layer).__name__ == "QuantizedEmbedding"
            stand_in = StoredEmbedding if is_embedding else StoredLinear
            replacement: nn.Module = stand_in(layer)
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
            replacement = widened_layer(path, layer)
        module.update_modules(tree_unflatten([(path, replacement)]))
    _widen_floats(module)
    return [f"{count} layers in float32: {reason}" for reason, count in reasons.items()]


def _reason(layer: nn.Module) -> str | None:
    if type(layer).__name__ not in ("QuantizedLinear", "QuantizedEmbedding"):
        return f"{type(layer).__name__} is not packed"
    return refusal(layer)


def _widen_floats(module: nn.Module) -> None:
    """float32 for what is not packed: norms, biases, plain matrices."""
    for part in module.modules():
        if isinstance(part, StoredLinear | StoredEmbedding) or hasattr(part, "bits"):
            continue
        for name, value in list(part.items()):
            is_array = isinstance(value, mx.array)
            if is_array and mx.issubdtype(value.dtype, mx.floating):
                part[name] = value.astype(mx.float32)


def is_quantized(module: nn.Module) -> bool:
    """True for a module with stand-ins in it."""
    kinds = (StoredLinear, StoredEmbedding)
    return any(isinstance(part, kinds) for part in module.modules())
