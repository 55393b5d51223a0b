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
_OLMO_NORMS = {
    "attention_layer_norm": "input_layernorm",
    "feedforward_layer_norm": "post_attention_layernorm",
}
_NANOCHAT_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.layers": "transformer.h",
    "self_attn.q_proj": "attn.c_q",
    "self_attn.k_proj": "attn.c_k",
    "self_attn.v_proj": "attn.c_v",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_DENSE_MLP = re.compile(r"\.block_sparse_moe\.(?=(?:gate|up|down)_proj\.)")


def as_definitions_read(module: nn.Module, weights: Weights) -> Weights:
    """The weights in the form that the definition's own clean-up knows.

    Raises `LookupError` where they are another family's.
    """
    model_type = getattr(module, "model_type", None)
    if model_type == "falcon_h1":
        return _fold_attention_multipliers(weights, module.args)
    if model_type == "longcat_flash":
        return _without_zero_experts(weights, module.args.n_routed_experts)
    if model_type == "olmo_hybrid":
        return _olmo_hybrid(weights, module.args)
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


def _without_zero_experts(weights: Weights, num_experts: int) -> Weights:
    """LongCat's weights without those of experts that only pass on what they get."""
    kept = {}
    for name, value in weights.items():
        match = _EXPERT.fullmatch(name)
        if match is None or int(match[2]) < num_experts:
            kept[name] = value
    return kept


def _olmo_hybrid(weights: Weights, arguments: Any) -> Weights:
    """OLMo's weights as its definition names them, with convolutions cut anew.

    transformers has one convolution for queries, keys and values, and cuts it into
    thirds when it saves it, whatever sizes they have.
    """
    renamed = _renamed(weights, _OLMO_NORMS)
    keys = arguments.linear_num_key_heads * arguments.linear_key_head_dim
    for name in list(renamed):
        if not name.endswith(".q_conv1d.weight"):
            continue
        stem = name.removesuffix("q_conv1d.weight")
        names = [f"{stem}{part}_conv1d.weight" for part in "qkv"]
        if renamed[name].shape[0] == keys:
            continue
        whole = mx.concatenate([renamed[each] for each in names])
        parts = mx.split(whole, [keys, 2 * keys])
        renamed.update(zip(names, parts, strict=True))
    return renamed


def _transposed_experts(weights: Weights) -> Weights:
    """Qwen3-VL's experts as `[experts, in, out]`, however they were saved.

    Newer writers save `[experts, out, in]`.
    """
    turned = dict(weights)
    for name, down in weights.items():
        gate_up_name = name.replace("down_proj", "gate_up_proj")
        if not name.endswith(".mlp.experts.down_proj") or gate_up_name not in weights:
            continue
        gate_up = weights[gate_up_name]
        width, hidden = gate_up.shape[-2:]
        is_newer = tuple(down.shape[-2:]) == (hidden, width // 2)
        is_older = tuple(down.shape[-2:]) == (hidden // 2, width)
        if is_newer and not is_older:
            turned[name] = down.swapaxes(-1, -2)
            turned[gate_up_name] = gate_up.swapaxes(-1, -2)
    return turned


def _kimi_linear(weights: Weights) -> Weights:
    """Kimi Linear's layers without experts, under the name that they have alone."""
    renamed = {}
    for name, value in weights.items():
        renamed[_DENSE_MLP.sub(".mlp.", name)] = value
    return renamed


def _lfm2_vl(weights: Weights) -> Weights:
    """The text model of LFM2-VL as its definition names it, without the pictures'."""
    renamed = {}
    for name, value in weights.items():
        own_name = name
        if name.startswith("model.language_model."):
            rest = name.removeprefix("model.language_model.")
            own_name = f"language_model.model.{rest}"
        if not own_name.startswith("language_model."):
            continue
        is_convolution = own_name.endswith("conv.conv.weight")
        if is_convolution and value.shape[-1] > value.shape[1]:
            renamed[own_name] = value.swapaxes(1, 2)
        else:
            renamed[own_name] = value
    return renamed


def _nanochat(weights: Weights) -> Weights:
    """Nanochat's names as its first files have them."""
    return _renamed(weights, _NANOCHAT_NAMES)


def _renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
    """The weights with parts of their names changed; `names` maps theirs to ours."""
    renamed = {}
    for name, value in weights.items():
        new_name = name
        for theirs, ours in names.items():
            new_name = new_name.replace(theirs, ours)
        renamed[new_name] = value
    return renamed


_FORMS: Mapping[str, Callable[[Weights], Weights]] = {
    "gpt_oss": _split_experts,
    "gpt2": _without_outer_name,
    "kimi_linear": _kimi_linear,
    "lfm2_vl": _lfm2_vl,
    "nanochat": _nanochat,
    "qwen3_5_moe": _pack_experts,
    "qwen3_vl_moe": _transposed_experts,
}
