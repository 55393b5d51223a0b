"""Tiny models with a head for several tokens, as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from tests.support.tiny import save_tokenizer
from tests.support.zoo import zoo_config, zoo_model

Weights = dict[str, mx.array]

_HEAD = {
    "model.norm.weight": "shared_head.norm.weight",
    "lm_head.weight": "shared_head.head.weight",
    "model.embed_tokens.weight": "embed_tokens.weight",
}
_ROTATION = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}
_QWEN = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
WITH_HEADS = ("glm4_moe", "glm4_moe_lite", "deepseek_v3", "glm_moe_dsa", *_QWEN)


def save_with_head(arch: str, folder: Path, seed: int = 1) -> Path:
    """A folder with a model and a head."""
    config = _config(arch)
    module, _ = zoo_model(arch, seed, config)
    head, _ = zoo_model(arch, seed + 1, _head_config(config))
    if arch in _QWEN:
        weights = _qwen(module, head, seed)
    else:
        weights = _behind_the_last(module, head, config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    save_tokenizer(folder)
    return folder


def _config(arch: str) -> dict[str, Any]:
    config = zoo_config(arch)
    if arch == "qwen3_next":
        return config  # which says nothing of a head
    if arch in _QWEN:
        is_dense = arch == "qwen3_5"
        text = config["text_config"]
        text |= {"mtp_num_hidden_layers": 1, "rope_parameters": dict(_ROTATION)}
        text |= {"tie_word_embeddings": is_dense}
        if is_dense:
            text["num_experts"] = 0
        return {**config, "tie_word_embeddings": is_dense}
    return {
        **config,
        "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 1.0 if arch == "glm4_moe" else 1.5,
    }


def _head_config(config: dict[str, Any]) -> dict[str, Any]:
    one_layer = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
    if "text_config" in config:
        text = {**config["text_config"], **one_layer, "full_attention_interval": 1}
        text.pop("layer_types", None)
        return {**config, "text_config": text}
    if "full_attention_interval" in config:
        one_layer["full_attention_interval"] = 1
    return {**config, **one_layer}


def _joint(size: int, seed: int, names: tuple[str, str, str]) -> Weights:
    """The projection and the two norms before it, as they are multiplied with."""
    random = np.random.default_rng(seed)
    projection = random.standard_normal((size, 2 * size)) / np.sqrt(2 * size)
    weights = {names[0]: mx.array(projection.astype(np.float32))}
    for name in names[1:]:
        scale = 1 + 0.1 * random.standard_normal(size)
        weights[name] = mx.array(scale.astype(np.float32))
    return weights


def _behind_the_last(
    module: nn.Module, head: nn.Module, config: dict[str, Any], seed: int
) -> Weights:
    """The head as a layer behind the model's last one."""
    weights = dict(tree_flatten(module.parameters()))
    prefix = f"model.layers.{config['num_hidden_layers']}."
    names = ("eh_proj.weight", "enorm.weight", "hnorm.weight")
    joint = _joint(config["hidden_size"], seed, names)
    own = joint | _one_by_one(dict(tree_flatten(head.parameters())))
    if "model.layers.0.self_attn.embed_q.weight" in own:
        _join_latents(own)
    for name, value in own.items():
        own_name = _HEAD.get(name, name.removeprefix("model.layers.0."))
        weights[prefix + own_name] = value
    return weights


def _one_by_one(weights: Weights) -> Weights:
    """Experts each under a name of its own, as they are published."""
    single: Weights = {}
    for name, value in weights.items():
        if ".switch_mlp." not in name:
            single[name] = value
            continue
        for number, expert in enumerate(value):
            expert_name = name.replace("switch_mlp", f"experts.{number}")
            single[expert_name] = mx.contiguous(expert)
    return single


def _join_latents(weights: Weights) -> None:
    """What makes keys and values of a latent is one matrix."""
    stem = "model.layers.0.self_attn."
    keys = weights.pop(f"{stem}embed_q.weight").swapaxes(-1, -2)
    values = weights.pop(f"{stem}unembed_out.weight")
    both = mx.concatenate([keys, values], axis=1)
    weights[f"{stem}kv_b_proj.weight"] = both.reshape(-1, both.shape[-1])


def _qwen(module: nn.Module, head: nn.Module, seed: int) -> Weights:
    """The head under `mtp`; norms without the 1 that is added to them."""
    weights: Weights = {}
    for name, value in _one_by_one(dict(tree_flatten(module.parameters()))).items():
        published = name.replace("language_model.model.", "model.language_model.")
        published = published.removeprefix("language_model.")
        if "conv1d" in name:
            value = mx.contiguous(value.moveaxis(1, 2))
        is_gated = "linear_attn.norm" in name
        weights[published] = value if is_gated else _less_one(name, value)
    own = _one_by_one(dict(tree_flatten(head.parameters())))
    names = ("fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight")
    size = module.model.norm.weight.shape[0]
    for name, value in (_joint(size, seed, names) | own).items():
        own_name = name.removeprefix("language_model.").removeprefix("model.")
        if not own_name.startswith(("embed_tokens.", "lm_head.")):
            weights[f"mtp.{own_name}"] = _less_one(name, value)
    return weights


def _less_one(name: str, value: mx.array) -> mx.array:
    if value.ndim == 1 and "norm" in name:
        return value - 1.0
    return value
