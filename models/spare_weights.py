"""Weights in a model's files that a text's numbers do not depend on.

Files are published with more than the language model: towers for images and sound,
layers that predict further tokens, tables that follow from the configuration, and a
second copy of an embedding that is the head. A definition's clean-up knows some of them.
What is not known to be spare stays, and is refused by name when weights are put.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.models.config_file import text_config
from rvllm_local.models.config_normal import normalised
from rvllm_local.models.heads import TIED

Weights = dict[str, mx.array]

# Rotation tables, masks of older releases, and scales of a KV cache in 8 bits.
_TABLE = re.compile(
    r"(?:.*\.)?(?:rotary_emb\.(?:inv_freq|(?:cos|sin)_cached)|attn\.masked_bias|[qkv]_scale)"
)
# Parts of a name that say what a weight is for.
_TOWERS = frozenset(
    (
        "audio_encoder",
        "audio_model",
        "audio_tower",
        "embed_audio",
        "embed_vision",
        "image_newline",
        "mm_projector",
        "multi_modal_projector",
        "patch_merger",
        "vision_encoder",
        "vision_model",
        "vision_projection",
        "vision_tower",
        "visual",
    )
)
_PREDICTORS = frozenset(("mtp", "mtp_block", "mtp_layers", "nextn"))
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.*)")
# What only a layer that predicts further tokens has.
_OF_PREDICTOR = ("eh_proj.", "enorm.", "hnorm.")
_PACKED_PARTS = (".scales", ".biases")


def without_spare(
    module: nn.Module, config: Mapping[str, Any], weights: Weights
) -> Weights:
    """The weights without those that are known to be spare and that nobody takes."""
    taken = {name for name, _ in tree_flatten(module.parameters())}
    spare = {name for name in weights if _stem(name) not in taken}
    if not spare:
        return weights
    predictors = _predictors(config, spare)
    is_tied = normalised(config).get(TIED) is True
    is_tied = is_tied or text_config(normalised(config)).get(TIED) is True
    kept = {}
    for name, value in weights.items():
        is_spare = name in spare and (
            is_for_other_parts(name) or _layer_of(name) in predictors
        )
        is_copy = is_tied and _stem(name).endswith("lm_head.weight")
        if is_spare or (name in spare and is_copy):
            continue
        kept[name] = value
    return kept


def is_for_other_parts(name: str) -> bool:
    """True for a weight that is no part of a language model, by its name."""
    segments = set(name.split("."))
    is_part = bool(segments & (_TOWERS | _PREDICTORS))
    return is_part or _TABLE.fullmatch(name) is not None


def _stem(name: str) -> str:
    """The weight's name as it is before packing."""
    for part in _PACKED_PARTS:
        if name.endswith(part):
            return name.removesuffix(part) + ".weight"
    return name


def _layer_of(name: str) -> int | None:
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    return int(match[1])


def _predictors(config: Mapping[str, Any], names: Iterable[str]) -> set[int]:
    """Numbers of layers behind the model's own that predict further tokens.

    A layer behind them of which nothing says so may be one that the configuration has
    forgotten.
    """
    layers = config.get("num_hidden_layers")
    if layers is None:
        layers = text_config(config).get("num_hidden_layers")
    numbers: set[int] = set()
    for name in names:
        match = _LAYER.fullmatch(name)
        is_named = match is not None and match[2].startswith(_OF_PREDICTOR)
        if match is not None and is_named and type(layers) is int:
            number = int(match[1])
            if number >= layers:
                numbers.add(number)
    return numbers
