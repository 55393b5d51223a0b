"""Corrections of definitions whose arithmetic is not that of the family.

Each was found by holding mlx-lm 0.32.2 against transformers' own logits.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.models.replaced_calls import replace_call

_ROUTER_BIAS = "router_bias"
# What ERNIE publishes the bias as; the definition's clean-up drops it.
_PUBLISHED_BIAS = "moe_statics.e_score_correction_bias"


def correct_definition(module: nn.Module, model_type: str) -> None:
    """Give the parts that compute something else their family's arithmetic."""
    if model_type != "jamba":
        return
    for layer in module.layers:
        if hasattr(layer.feed_forward, "switch_mlp"):
            replace_call(layer.feed_forward, _jamba_experts)


def put_router_biases(
    module: nn.Module, weights: dict[str, mx.array]
) -> dict[str, mx.array]:
    """Weights with ERNIE's router biases, under names that the module then has.

    The bias decides which experts a token goes to, and not how much each weighs.
    """
    if getattr(module, "model_type", None) != "ernie4_5_moe":
        return weights
    renamed = {}
    for name, value in weights.items():
        stem = name.removesuffix(_PUBLISHED_BIAS).removesuffix(_ROUTER_BIAS)
        if stem == name:
            renamed[name] = value
            continue
        bias = value.reshape(-1)
        block = _part(module, stem.rstrip("."))
        setattr(block, _ROUTER_BIAS, mx.zeros_like(bias))
        replace_call(block, _ernie_experts)
        renamed[f"{stem}{_ROUTER_BIAS}"] = bias
    return renamed


def _part(module: nn.Module, path: str) -> Any:
    """The part at a dotted path. Raises `LookupError` or `AttributeError`."""
    part: Any = module
    for name in path.split("."):
        part = part[int(name)] if name.isdecimal() else getattr(part, name)
    return part


def _jamba_experts(block: Any, x: mx.array) -> mx.array:
    """The chosen experts weigh what they do among all, not among the chosen."""
    count = block.num_experts_per_tok
    weights = mx.softmax(block.router(x), axis=-1, precise=True)
    experts = mx.argpartition(-weights, kth=count - 1, axis=-1)[..., :count]
    experts = mx.stop_gradient(experts)
    weights = mx.take_along_axis(weights, experts, axis=-1)
    outputs = block.switch_mlp(x, experts)
    mixed: mx.array = (outputs * weights[..., None]).sum(axis=-2)
    return mixed


def _ernie_experts(block: Any, x: mx.array) -> mx.array:
    weights = block.gate_act(block.gate(x).astype(mx.float32))
    ranked = weights + block.router_bias
    count = block.k
    experts = mx.argpartition(-ranked, kth=count - 1, axis=-1)[..., :count]
    experts = mx.stop_gradient(experts)
    weights = mx.take_along_axis(weights, experts, axis=-1)
    weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)
    outputs = block.switch_mlp(x, experts)
    mixed: mx.array = (outputs * weights[..., None]).sum(axis=-2).astype(outputs.dtype)
    if block.shared_experts is not None:
        mixed = mixed + block.shared_experts(x)
    return mixed
