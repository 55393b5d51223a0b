"""Builds a model's module from its config through mlx-lm's model definitions.

Knows no files and no caches, and never runs code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import ModuleType
from typing import Any

from mlx import nn

from rvllm_local.errors import DEFINITION_ERRORS, ModelFileError
from rvllm_local.models.architecture import (
    architectures,
    check_architecture,
    import_family,
)
from rvllm_local.models.config_check import check_config
from rvllm_local.models.config_normal import normalised
from rvllm_local.models.corrections import correct_definition
from rvllm_local.models.rotation_check import enforce_rotations
from rvllm_local.models.unread_fields import check_unread_fields
from rvllm_local.models.windows import put_windows

_FULL = "full_attention"


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """A module with lazy, randomly initialised parameters for a config.json-like mapping.

    Raises `UnsupportedModelError` for unknown types and configs that ask to run code, `ModelFileError` for
    missing or absurd values.
    """
    model_type = check_architecture(config)
    check_config(config)
    config = normalised(config)
    names = architectures(config)
    family = import_family(model_type, names)
    _check_fields(family.ModelArgs, config, model_type)
    check_unread_fields(family, config)
    try:
        model = _built(family, config)
        correct_definition(model, model_type)
        put_windows(model, config)
        enforce_rotations(model, config)
    except DEFINITION_ERRORS as error:
        raise ModelFileError(
            f"the config does not describe a {model_type} model: {error!r}"
        ) from error
    _check_unused_tokens(model, config)
    return model


def _built(family: ModuleType, config: Mapping[str, Any]) -> nn.Module:
    layer_types = config.get("layer_types")
    is_llama = family.__name__.endswith(".llama")
    if not is_llama or not layer_types or _FULL in layer_types:
        model: nn.Module = family.Model(family.ModelArgs.from_dict(dict(config)))
        return model
    # The definition wants one full layer, and takes a window for it afterwards.
    with_one_full = {**config, "layer_types": [_FULL, *layer_types[1:]]}
    model = family.Model(family.ModelArgs.from_dict(with_one_full))
    model.layers[0].use_sliding = True
    model.model.swa_idx = 0
    return model


def _check_unused_tokens(model: nn.Module, config: Mapping[str, Any]) -> None:
    """A definition that masks fixed tokens writes to their logits, and MLX does not check where it writes."""
    unused = getattr(model, "_dummy_tokenizer_ids", None)
    if unused is not None and int(unused.max()) >= int(config["vocab_size"]):
        raise ModelFileError(
            f"vocab_size is {config['vocab_size']}, but this architecture masks token {int(unused.max())}"
        )


def _check_fields(args: Any, config: Mapping[str, Any], model_type: str) -> None:
    if not is_dataclass(args):
        return
    required = [
        f.name
        for f in fields(args)
        if f.default is MISSING and f.default_factory is MISSING
    ]
    if missing := [name for name in required if name not in config]:
        raise ModelFileError(
            f"the config of a {model_type} model lacks {', '.join(missing)}"
        )
