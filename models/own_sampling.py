"""What a model's makers recommend to sample with, from its files and the catalogue."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.config_file import GENERATION, generation_settings
from rvllm_local.models.locate import ModelFiles
from rvllm_local.types import SamplingParams

# A parameter's lowest and highest value.
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-9, 1.0),
    "top_k": (0, 1 << 20),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, 100.0),
}
# What GGUF files call them, below `general.sampling`.
_GGUF_NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


@dataclass(frozen=True, slots=True)
class OwnSampling:
    """Recommended values by the names of `SamplingParams`, and where they are written."""

    values: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def applied(
        self, params: SamplingParams, stated: Collection[str]
    ) -> SamplingParams:
        """`params` with the model's own values for what nobody stated."""
        changes: dict[str, Any] = {}
        for name, value in self.values.items():
            if name not in stated:
                changes[name] = value
        if not changes:
            return params
        return dataclasses.replace(params, **changes)


def own_sampling(files: ModelFiles) -> OwnSampling:
    """The model's own sampling; what its files leave out, the catalogue may say.

    A value out of its range is left out: it is a recommendation, not the model.
    """
    source, settings = _of_files(files)
    values = _usable(settings)
    sources = []
    if values:
        sources.append(source)
    added = False
    for name, value in _usable(_of_catalogue(files)).items():
        if name not in values:
            values[name] = value
            added = True
    if added:
        sources.append("the catalogue")
    return OwnSampling(values, " and ".join(sources))


def _of_files(files: ModelFiles) -> tuple[str, Mapping[str, Any]]:
    if files.kind == "gguf":
        from rvllm_local.models.gguf.reader import GGUFFile  # loads numpy

        metadata = GGUFFile(files.path).metadata
        settings: dict[str, Any] = {}
        for name, gguf_name in _GGUF_NAMES.items():
            settings[name] = metadata.get(f"general.sampling.{gguf_name}")
        return "the GGUF file", settings
    settings = generation_settings(files.path) or {}
    return GENERATION, settings


def _of_catalogue(files: ModelFiles) -> Mapping[str, Any]:
    file = files.path.name if files.kind == "gguf" else None
    entry = Catalogue.load().of_model(files.name, file)
    if entry is None:
        return {}
    return entry.sampling


def _usable(settings: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, (lowest, highest) in _RANGES.items():
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name == "top_k":
            if not math.isfinite(value):
                continue
            value = max(0, math.floor(value))  # below 1 it means "all"
        if lowest <= value <= highest:
            values[name] = value
    return values
