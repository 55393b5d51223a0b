"""Tiny models with a head for several tokens, as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from tests.support.tiny import save_tokenizer
from tests.support.zoo import zoo_config, zoo_model

_HEAD = {
    "model.norm.weight": "shared_head.norm.weight",
    "lm_head.weight": "shared_head.head.weight",
    "model.embed_tokens.weight": "embed_tokens.weight",
}


def save_with_head(arch: str, folder: Path, seed: int = 1) -> Path:
    """A folder with a model and a head, whose layer stands behind the model's."""
    config = {**zoo_config(arch), "num_nextn_predict_layers": 1}
    module, _ = zoo_model(arch, seed, config)
    weights = dict(tree_flatten(module.parameters()))
    head_config = {**config, "num_hidden_layers": 1, "first_k_dense_replace": 0}
    head, _ = zoo_model(arch, seed + 1, head_config)
    prefix = f"model.layers.{config['num_hidden_layers']}."
    weights |= _stored(head, prefix)
    random = np.random.default_rng(seed)
    size = config["hidden_size"]
    projection = random.standard_normal((size, 2 * size)) / np.sqrt(2 * size)
    weights[f"{prefix}eh_proj.weight"] = mx.array(projection.astype(np.float32))
    for name in ("enorm", "hnorm"):
        scale = 1 + 0.1 * random.standard_normal(size)
        weights[f"{prefix}{name}.weight"] = mx.array(scale.astype(np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    save_tokenizer(folder)
    return folder


def _stored(head: nn.Module, prefix: str) -> dict[str, mx.array]:
    weights = {}
    for name, value in tree_flatten(head.parameters()):
        own_name = _HEAD.get(name, name.removeprefix("model.layers.0."))
        if ".switch_mlp." not in own_name:
            weights[prefix + own_name] = value
            continue
        for number, expert in enumerate(value):  # published one by one
            expert_name = own_name.replace("switch_mlp", f"experts.{number}")
            weights[prefix + expert_name] = mx.contiguous(expert)
    return weights
