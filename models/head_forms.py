"""The forms in which families publish a head for multi-token prediction.

Knows names and configurations, and no file. A head of one form is a layer behind the
model's last one; a head of the other stands by itself, under `mtp`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.config_file import text_config

Weights = dict[str, mx.array]

_BEHIND_THE_LAST = (
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
)
_BY_ITSELF = ("qwen3_5", "qwen3_5_moe", "qwen3_next")
FAMILIES = (*_BEHIND_THE_LAST, *_BY_ITSELF)
_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")

# What both forms have: the joint's parts, and the norm at the end.
_JOINT = "model.embed_tokens."
_NORM = "model.norm.weight"
_LAYER_NAMES = {
    "enorm.": f"{_JOINT}enorm.",
    "hnorm.": f"{_JOINT}hnorm.",
    "eh_proj.": f"{_JOINT}eh_proj.",
    "shared_head.norm.": "model.norm.",
}
_OWN_NAMES = {
    "pre_fc_norm_embedding.": f"{_JOINT}enorm.",
    "pre_fc_norm_hidden.": f"{_JOINT}hnorm.",
    "fc.": f"{_JOINT}eh_proj.",
    "norm.": "model.norm.",
    "layers.0.": "model.layers.0.",
}
_SHARED = ("embed_tokens.", "shared_head.head.")  # copies of the model's own
_OWN_PREFIXES = ("mtp.", "language_model.mtp.", "model.mtp.")
_BETWEEN = 0.5  # norms' weights lie about 1, and about 0 where 1 is still to be added


def head_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model's head as a model of one layer.

    Raises `UnsupportedModelError` if the model has none, or one of another form.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"heads that predict several tokens are read of {', '.join(FAMILIES)}, "
            f"and this is a {model_type} model"
        )
    part = text_config(config)
    if not part:
        return _one_layer(config, str(model_type))
    return {**config, "text_config": _one_layer(part, str(model_type))}


def _one_layer(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    _check_count(config, model_type)
    head = {**config, "num_hidden_layers": 1}
    head.pop("mlp_layer_types", None)
    head.pop("layer_types", None)
    for name in _COUNTS:
        if name in head:
            head[name] = 0
    if model_type in _BY_ITSELF:
        head["full_attention_interval"] = 1  # a head has no recurrent layer
        head["mlp_only_layers"] = []
        head["decoder_sparse_step"] = 1
    else:
        head["first_k_dense_replace"] = 0  # its layer has experts, as the last ones
    return head


def _check_count(config: Mapping[str, Any], model_type: str) -> None:
    """Raise `UnsupportedModelError` if the configuration says that there is no head.

    Qwen3-Next's says nothing, and has one.
    """
    counts = {name: config[name] for name in _COUNTS if name in config}
    if any(counts.values()) or (model_type in _BY_ITSELF and not counts):
        return
    name, count = next(iter(counts.items()), (_COUNTS[0], None))
    raise UnsupportedModelError(
        f"config.json has {name} = {count!r}: the model has no head that predicts "
        "several tokens"
    )


def stored_head(config: Mapping[str, Any], weights: Weights) -> Weights:
    """The first head's weights, under the names of a model of one layer."""
    if config["model_type"] in _BEHIND_THE_LAST:
        return _behind_the_last(weights, int(config["num_hidden_layers"]))
    head: Weights = {}
    for name, value in weights.items():
        for prefix in _OWN_PREFIXES:
            own_name = name.removeprefix(prefix)
            renamed = _renamed(own_name, _OWN_NAMES)
            if own_name != name and renamed is not None:
                head[renamed] = value
                break
    return head


def _behind_the_last(weights: Weights, num_layers: int) -> Weights:
    prefix = f"model.layers.{num_layers}."
    head: Weights = {}
    for name, value in weights.items():
        own_name = name.removeprefix(prefix)
        if own_name == name or own_name.startswith(_SHARED):
            continue
        renamed = _renamed(own_name, _LAYER_NAMES)
        head[renamed or f"model.layers.0.{own_name}"] = value
    return head


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    for begin, other in names.items():
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return None


def norms_as_multiplied(
    config: Mapping[str, Any], head: Weights, weights: Weights
) -> Weights:
    """The head's norms whose stored weights are not what is multiplied with.

    Qwen's are published with 1 to be added. Converters that keep the head have added it
    to all of its norms, to none, or to the last alone: a layer's norms tell by their
    values, and those of the joint, which are small either way, go with them.
    """
    if config["model_type"] not in _BY_ITSELF:
        return {}
    norms: Weights = {}
    for name, value in head.items():
        if value.ndim == 1 and "norm" in name and name.endswith(".weight"):
            norms[name] = value
    if not _as_published(weights):
        of_layer = [_mean(value) for name, value in norms.items() if ".layers." in name]
        if not of_layer or statistics.median(of_layer) > _BETWEEN:
            norms = {name: value for name, value in norms.items() if name == _NORM}
        if _NORM in norms and _mean(norms[_NORM]) > _BETWEEN:
            del norms[_NORM]
    return {name: value.astype(mx.float32) + 1.0 for name, value in norms.items()}


def _as_published(weights: Weights) -> bool:
    """No converter has turned the recurrent layers' convolutions."""
    for name, value in weights.items():
        if name.endswith("conv1d.weight"):
            return bool(value.shape[-1] != 1)
    return False


def _mean(value: mx.array) -> float:
    return float(np.mean(np.array(value.astype(mx.float32))))
