"""Turns a quantized or half-precision module into float32, for devices that multiply nothing else well."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.errors import UnsupportedModelError

_TERNARY = "BitLinear"  # of BitNet's models


def widen_to_float32(module: nn.Module) -> None:
    """Dequantize and widen in place, one layer at a time, so that both copies of the weights never exist at once.

    Raises `UnsupportedModelError` for a kind of quantized layer that is not known here.
    """
    leaves = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    quantized = [(path, layer) for path, layer in leaves if _is_packed(layer)]
    del leaves
    while quantized:
        path, layer = quantized.pop()
        module.update_modules(tree_unflatten([(path, widened_layer(path, layer))]))
    module.set_dtype(mx.float32)


def _is_packed(layer: nn.Module) -> bool:
    return hasattr(layer, "bits") or type(layer).__name__ == _TERNARY


def widened_layer(path: str, layer: nn.Module) -> nn.Module:
    """A quantized layer in float32. Raises `UnsupportedModelError` for a kind that is not known here."""
    kind = type(layer).__name__
    plain: nn.Module
    if kind == _TERNARY:
        return _ternary_linear(layer)
    if kind == "QuantizedEmbedding":
        plain = nn.Embedding(1, 1)
    elif kind == "QuantizedLinear":
        plain = nn.Linear(1, 1, bias="bias" in layer)
    elif kind in ("QuantizedAllToShardedLinear", "QuantizedShardedToAllLinear"):
        plain = _divided_linear(kind, layer)
    elif kind == "QuantizedSwitchLinear":  # stacked experts
        from mlx_lm.models.switch_layers import SwitchLinear

        plain = SwitchLinear(1, 1, 1, bias="bias" in layer)
    elif kind == "QuantizedMultiLinear":  # a matrix a head, of latent attention
        from mlx_lm.models.mla import MultiLinear

        plain = MultiLinear(1, 1, 1)
    else:
        raise UnsupportedModelError(
            f"layer {path} ({kind}) cannot run on a CPU; use the unquantized model here"
        )
    if layer.get("global_scale") is not None:
        raise UnsupportedModelError(
            f"layer {path} has a global scale, which cannot run on a CPU; use another model"
        )
    plain.weight = mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        layer.group_size,
        layer.bits,
        mode=layer.mode,
    ).astype(mx.float32)
    if "bias" in layer:
        plain.bias = layer.bias
    mx.eval(plain.weight)
    return plain


def _divided_linear(kind: str, layer: nn.Module) -> nn.Module:
    """The part of a linear layer that a rank has; its weight is put in afterwards."""
    size = layer.group.size()
    if kind == "QuantizedAllToShardedLinear":
        divided = nn.AllToShardedLinear
    else:
        divided = nn.ShardedToAllLinear
    return divided(size, size, "bias" in layer, layer.group)


def _ternary_linear(layer: nn.Module) -> nn.Linear:
    """A layer of the weights -1, 0 and 1 times one scale.

    A byte holds one weight of each quarter of the outputs, the first in its lowest
    bits.
    """
    quarters = []
    for shift in (0, 2, 4, 6):
        codes = (layer.weight >> shift) & 3
        quarters.append(codes.astype(mx.float32) - 1)
    scale = layer.weight_scale.astype(mx.float32)
    if layer.invert_weight_scales:
        scale = 1 / scale
    bias = layer.get("bias")
    plain = nn.Linear(1, 1, bias=bias is not None)
    plain.weight = mx.concatenate(quarters, axis=0) * scale
    if bias is not None:
        plain.bias = bias
    mx.eval(plain.weight)
    return plain
