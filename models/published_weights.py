"""Weights under names that definitions do not read, though they are published so.

transformers 5 saves the experts of some families one by one where they were packed
before, and the other way round. A definition's own clean-up knows one of the forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

Weights = dict[str, mx.array]

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def as_definitions_read(module: nn.Module, weights: Weights) -> Weights:
    """The weights in the form that the definition's own clean-up knows.

    Raises `LookupError` where they are another family's.
    """
    model_type = getattr(module, "model_type", None)
    if model_type == "falcon_h1":
        return _fold_attention_multipliers(weights, module.args)
    rename = _FORMS.get(model_type or "")
    if rename is None:
        return weights
    return rename(weights)


def _fold_attention_multipliers(weights: Weights, arguments: Any) -> Weights:
    """The two of Falcon H1's multipliers that the clean-up leaves out.

    It folds the others into weights that were not cleaned up before.
    """
    convolution = weights["model.layers.0.mamba.conv1d.weight"]
    if convolution.shape[-1] <= convolution.shape[1]:
        return weights
    folded = {}
    for name, value in weights.items():
        factor = 1.0
        if name.endswith("k_proj.weight"):
            factor = arguments.key_multiplier
        elif name.endswith("v_proj.weight"):
            factor = arguments.attention_in_multiplier
        folded[name] = value if factor == 1 else value * factor
    return folded


def _split_experts(weights: Weights) -> Weights:
    """gpt-oss's experts as floats, in the form of its definition.

    They are published as `[experts, in, out]`, with gate and up in turn; the
    definition's own clean-up knows the quantized form alone.
    """
    split = {}
    for name, value in weights.items():
        if name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            rows = value.swapaxes(-1, -2)
            gate = rows[..., ::2, :]
            up = rows[..., 1::2, :]
            split[f"{stem}gate_proj.weight"] = mx.contiguous(gate)
            split[f"{stem}up_proj.weight"] = mx.contiguous(up)
        elif name.endswith(".experts.gate_up_proj_bias"):
            stem = name.removesuffix("gate_up_proj_bias")
            gate = value[..., ::2]
            up = value[..., 1::2]
            split[f"{stem}gate_proj.bias"] = mx.contiguous(gate)
            split[f"{stem}up_proj.bias"] = mx.contiguous(up)
        elif name.endswith(".experts.down_proj"):
            rows = value.swapaxes(-1, -2)
            split[f"{name}.weight"] = mx.contiguous(rows)
        elif name.endswith(".experts.down_proj_bias"):
            stem = name.removesuffix("_bias")
            split[f"{stem}.bias"] = value
        else:
            split[name] = value
    return split


def _pack_experts(weights: Weights) -> Weights:
    """Experts that are saved one by one, as `[experts, out, in]`."""
    packed: Weights = {}
    groups: dict[str, dict[str, dict[int, mx.array]]] = {}
    for name, value in weights.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            packed[name] = value
            continue
        stem, number, kind = match.groups()
        group = groups.setdefault(stem, {"gate": {}, "up": {}, "down": {}})
        group[kind][int(number)] = value
    for stem, group in groups.items():
        gate = _stacked(group["gate"])
        up = _stacked(group["up"])
        packed[f"{stem}.gate_up_proj"] = mx.concatenate([gate, up], axis=-2)
        packed[f"{stem}.down_proj"] = _stacked(group["down"])
    return packed


def _stacked(experts: Mapping[int, mx.array]) -> mx.array:
    """`[experts, out, in]`. Raises `LookupError` if one is missing."""
    return mx.stack([experts[number] for number in range(len(experts))])


def _without_outer_name(weights: Weights) -> Weights:
    """GPT-2's names as its first files have them, without the outer module."""
    renamed = {}
    for name, value in weights.items():
        if name != "lm_head.weight":  # the embedding, once more
            renamed[name.removeprefix("transformer.")] = value
    return renamed


_FORMS: Mapping[str, Callable[[Weights], Weights]] = {
    "gpt_oss": _split_experts,
    "gpt2": _without_outer_name,
    "qwen3_5_moe": _pack_experts,
}
