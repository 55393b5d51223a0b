"""Which of longrope's factors a model rotates by: those for long contexts or for short.

A model that has them was trained on short texts first. transformers takes the factors
by the length of each text, and so turns keys that are cached already; here one kind is
taken for all that a model is loaded for, as llama.cpp and vLLM do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

_KINDS = ("longrope", "su")


def with_factors_for(config: Mapping[str, Any], context: int | None) -> Config:
    """The configuration with the factors for texts of up to `context` tokens.

    None is the model's own context. Doing it twice changes nothing.
    """
    changed = dict(config)
    longest = config.get("max_position_embeddings")
    lengths = []
    for length in (context, longest):
        if type(length) is int:
            lengths.append(length)
    for name in ("rope_scaling", "rope_parameters"):
        settings = config.get(name)
        if not isinstance(settings, Mapping) or not _is_longrope(settings):
            continue
        original = settings.get("original_max_position_embeddings")
        if original is None:
            original = config.get("original_max_position_embeddings", math.inf)
        if lengths and min(lengths) <= original:
            changed[name] = {**settings, "long_factor": settings["short_factor"]}
    text = config.get("text_config")
    if isinstance(text, Mapping):
        changed["text_config"] = with_factors_for(text, context)
    return changed


def served_factors(config: Mapping[str, Any]) -> str | None:
    """Which factors a configuration serves by itself, in words; None without any."""
    config = with_factors_for(config, None)
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        settings = part.get("rope_scaling") or part.get("rope_parameters")
        if not isinstance(settings, Mapping) or not _is_longrope(settings):
            continue
        original = settings.get("original_max_position_embeddings")
        original = original or part.get("original_max_position_embeddings")
        if settings["long_factor"] == settings["short_factor"]:
            return "longrope, the factors for short texts"
        return (
            f"longrope, the factors for long texts; with --context {original} or less "
            "those for short ones"
        )
    return None


def attention_factor(settings: Mapping[str, Any]) -> float | None:
    """What rotated queries and keys are multiplied by, where the settings say so."""
    stated = settings.get("attention_factor")
    if stated is not None:
        return float(stated)
    factor = settings.get("factor")
    original = settings.get("original_max_position_embeddings")
    if factor is None or original is None:
        return None
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _is_longrope(settings: Mapping[str, Any]) -> bool:
    kind = settings.get("rope_type") or settings.get("type")
    has_factors = "short_factor" in settings and "long_factor" in settings
    return kind in _KINDS and has_factors
