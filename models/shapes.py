"""The layers of catalogue models, read from `shapes.toml`: what a plan needs of them."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from rvllm_local.models.catalogue import Catalogue, CatalogueEntry

# As converters write them: weights, and how many share a scale.
_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "4-bit": {"group_size": 64, "bits": 4},
    "mxfp4 and 8-bit": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}


def catalogue_config(entry: CatalogueEntry) -> dict[str, Any] | None:
    """What sizes follow from, as a model's configuration; None if it is not known."""
    config = _configs().get(entry.name)
    if config is None:
        return None
    config["max_position_embeddings"] = entry.context
    config["dtype"] = "bfloat16"
    quantization = _QUANTIZATIONS.get(entry.quantization)
    if quantization is not None:
        config["quantization"] = dict(quantization)
    return config


def shaped_entry(name: str) -> tuple[CatalogueEntry, dict[str, Any]] | None:
    """The catalogue's model of this name, if its layers are known."""
    entry = Catalogue.load().of_model(name)
    if entry is None:
        return None
    config = catalogue_config(entry)
    if config is None:
        return None
    return entry, config


def _configs() -> dict[str, dict[str, Any]]:
    """By the name of a model. Each is a new value."""
    path = resources.files("rvllm_local.models").joinpath("shapes.toml")
    configs: dict[str, dict[str, Any]] = {}
    for row in tomllib.loads(path.read_text(encoding="utf-8")).values():
        for name in row["models"]:
            configs[name] = dict(row["config"])
    return configs
