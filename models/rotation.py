"""Rotation settings of a configuration in both spellings, whoever wrote it.

Older writers put `rope_theta`, `rope_scaling` and `partial_rotary_factor` beside the
sizes. transformers 5 puts all into `rope_parameters`, once or for each type of layer.
A definition of mlx-lm reads one of the two and takes a default for the other, so a
configuration gets both here, with the same meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError

Settings = dict[str, Any]

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Older names of the base and of the rotated share, by what they are called now.
_OLD_NAMES = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rope_pct"),
}
# What a definition calls them, where it is not the usual name.
_FAMILY_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
}
# Definitions that read `rope_parameters` for each type of layer.
_BY_LAYER_TYPE = frozenset({"gemma4_text", "gemma4", "laguna", "mellum", "spark2_5"})
# Definitions with a base of their own for windowed layers, and its name.
_WINDOW_BASE = {
    "gemma3_text": "rope_local_base_freq",
    "gemma3": "rope_local_base_freq",
    "gemma3n": "rope_local_base_freq",
    "gemma3n_text": "rope_local_base_freq",
    "gear": "rope_local_base_freq",
    "plamo3": "rope_local_theta",
    "mimo_v2_flash": "swa_rope_theta",
}
_DEFAULT_WINDOW_BASE = 10_000.0
# Definitions that scale the positions of full layers alone, over one base.
_SCALE_FULL_ONLY = frozenset({"olmo3"})
# Definitions that cannot be built without `rope_scaling`, and what changes nothing.
_NEUTRAL_SCALING: Mapping[str, Settings] = {
    "exaone4": {"type": "default", "rope_type": "default"},
    "deepseek_v2": {"type": "yarn", "rope_type": "yarn", "factor": 1.0},
    "minicpm3": {"type": "default", "rope_type": "default"},
}
# The base that transformers takes where `rope_parameters` has none; 10,000 elsewhere.
_DEFAULT_BASE = {
    "apertus": 12_000_000.0,
    "bailing_hybrid": 6_000_000.0,
    "bitnet": 500_000.0,
    "cohere": 500_000.0,
    "ernie4_5": 500_000.0,
    "ernie4_5_moe": 500_000.0,
    "helium": 100_000.0,
    "lfm2": 1_000_000.0,
    "llama4_text": 500_000.0,
    "longcat_flash": 10_000_000.0,
    "minimax": 1_000_000.0,
    "minimax_m2": 5_000_000.0,
    "mixtral": 1_000_000.0,
    "phimoe": 1_000_000.0,
    "smollm3": 2_000_000.0,
    "solar_open": 1_000_000.0,
}
_BEGINS_AT_A_LENGTH = frozenset({"llama3", "yarn"})
# Two names of a kind that mean one: the first is what older files say.
_SAME_KIND = {("mrope", "default"), ("su", "longrope")}


def with_both_spellings(config: Mapping[str, Any], model_type: str) -> Settings:
    """The configuration with its rotation settings in both spellings.

    Raises `ModelFileError` for settings that contradict each other, and
    `UnsupportedModelError` for what the definition cannot tell apart by layer.
    """
    config = _without_nothing(config)
    stated = config.get("rope_parameters")
    if stated and config.get("rope_scaling") == _NEUTRAL_SCALING.get(model_type):
        config = {**config, "rope_scaling": None}
    older = _older_settings(config)
    if not stated:
        if not older:
            return _with_neutral(dict(config), model_type)
        return _spelled(config, _checked_kind(older, "rope_scaling"), model_type)
    if _is_by_layer(stated):
        return _spelled_by_layer(config, stated, older, model_type)
    newer = _checked_kind(dict(stated), "rope_parameters")
    _check_agreement(older, newer)
    base = {"rope_theta": _DEFAULT_BASE.get(model_type, 10_000.0)}
    return _spelled(config, {**base, **older, **newer}, model_type)


def _without_nothing(config: Mapping[str, Any]) -> Settings:
    """The configuration, whose rotations are without settings that are null.

    Those mean the default.
    """
    kept = dict(config)
    for name in ("rope_parameters", "rope_scaling"):
        settings = config.get(name)
        if isinstance(settings, Mapping):
            members = settings.items()
            kept[name] = {key: value for key, value in members if value is not None}
    return kept


def _older_settings(config: Mapping[str, Any]) -> Settings:
    """What the older spelling says, under the newer names."""
    settings: Settings = {}
    scaling = config.get("rope_scaling")
    if isinstance(scaling, Mapping):
        settings.update(scaling)
    for name, old_names in _OLD_NAMES.items():
        for old_name in old_names:
            value = config.get(old_name)
            if _is_number(value):
                settings[name] = value
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_by_layer(stated: Mapping[str, Any]) -> bool:
    """True for an object of objects, one for each type of layer."""
    return any(isinstance(part, Mapping) for part in stated.values())


def _checked_kind(settings: Settings, source: str) -> Settings:
    """The settings with their kind under `rope_type` alone."""
    kind = settings.get("rope_type")
    old_kind = settings.pop("type", None)
    if kind is not None and old_kind is not None and kind != old_kind:
        if (old_kind, kind) not in _SAME_KIND:
            raise ModelFileError(
                f"the config's {source} has type {old_kind!r:.40} and rope_type "
                f"{kind!r:.40}, which contradict each other"
            )
        if old_kind == "mrope":
            kind = old_kind  # it says more than "default"
    kind = kind or old_kind or "default"
    if kind == "su":
        kind = "longrope"
    settings["rope_type"] = kind
    factor = settings.get("factor")
    if type(factor) is int:
        settings["factor"] = float(factor)  # some definitions insist on it
    return settings


def _check_agreement(older: Settings, newer: Settings) -> None:
    """Raise `ModelFileError` where the two spellings say different things."""
    older = dict(older)
    if "type" in older or "rope_type" in older:
        older = _checked_kind(older, "rope_scaling")
    for key in older.keys() & newer.keys():
        if older[key] != newer[key]:
            source = f"rope_scaling.{key}"
            if key in _OLD_NAMES:
                source = key
            raise ModelFileError(
                f"the config's {source} is {older[key]!r:.60} and its "
                f"rope_parameters.{key} is {newer[key]!r:.60}: they contradict each "
                "other"
            )


def _spelled(
    config: Mapping[str, Any], settings: Settings, model_type: str
) -> Settings:
    """One rotation for all layers, in both spellings."""
    spelled = dict(config)
    settings = dict(settings)
    settings.pop("type", None)
    _put_lengths(settings, config)
    names = _FAMILY_NAMES.get(model_type, {})
    for key in _OLD_NAMES:
        if key in settings:
            spelled[names.get(key, key)] = settings[key]
            spelled[key] = settings[key]
    _put_scaling(spelled, settings)
    if "rope_theta" in settings:
        spelled["rope_parameters"] = settings
        if model_type in _WINDOW_BASE:
            spelled.setdefault(_WINDOW_BASE[model_type], _DEFAULT_WINDOW_BASE)
        if model_type in _BY_LAYER_TYPE:
            layer_types = set(spelled.get("layer_types") or (_FULL,))
            spelled["rope_parameters"] = dict.fromkeys(layer_types, settings)
    return _with_neutral(spelled, model_type)


def _put_lengths(settings: Settings, config: Mapping[str, Any]) -> None:
    """What scaling has to know of lengths, as transformers takes it where it is silent.

    YaRN's factor is that of the two lengths. The length that scaling begins at is the
    one beside the sizes, or the whole one; a definition would take a fixed number.
    """
    kind = settings.get("rope_type")
    longest = config.get("max_position_embeddings")
    original = settings.get("original_max_position_embeddings")
    if kind == "yarn" and longest and original and settings.get("factor") is None:
        settings["factor"] = longest / original
    if kind in _BEGINS_AT_A_LENGTH and original is None:
        original = config.get("original_max_position_embeddings") or longest
        if original is not None:
            settings["original_max_position_embeddings"] = original


def _put_scaling(spelled: Settings, settings: Settings) -> None:
    """Write `rope_scaling` as older writers do, with both names of its kind."""
    if isinstance(spelled.get("rope_scaling"), int | float):
        return
    scaling: Settings = {}
    for key, value in settings.items():
        if key not in _OLD_NAMES:
            scaling[key] = value
    kind = scaling["rope_type"]
    if kind == "proportional" and "partial_rotary_factor" in settings:
        scaling["partial_rotary_factor"] = settings["partial_rotary_factor"]
    if kind == "default" and len(scaling) == 1:
        spelled.pop("rope_scaling", None)
        return
    spelled["rope_scaling"] = {**scaling, "type": kind}
    original = scaling.get("original_max_position_embeddings")
    if original is not None and kind == "longrope":
        spelled.setdefault("original_max_position_embeddings", original)


def _with_neutral(spelled: Settings, model_type: str) -> Settings:
    if spelled.get("rope_scaling"):
        return spelled
    # Some definitions want the key, and take None for no scaling.
    spelled["rope_scaling"] = None
    neutral = _NEUTRAL_SCALING.get(model_type)
    if neutral is not None:
        spelled["rope_scaling"] = dict(neutral)
    return spelled


def _spelled_by_layer(
    config: Mapping[str, Any],
    stated: Mapping[str, Any],
    older: Settings,
    model_type: str,
) -> Settings:
    """A rotation for each type of layer, as far as the definition can have them."""
    by_type: dict[str, Settings] = {}
    beside: Settings = {}
    for name, part in stated.items():
        if isinstance(part, Mapping):
            settings = _checked_kind(dict(part), f"rope_parameters.{name}")
            by_type[name] = settings
        elif part is not None:
            beside[name] = part  # what is not for a type of layer
    _check_base(older, by_type.values(), "rope_theta")
    _check_base(beside, by_type.values(), "rope_parameters.rope_theta")
    if model_type in _BY_LAYER_TYPE:
        return {**config, "rope_parameters": by_type}
    full = by_type.get(_FULL) or next(iter(by_type.values()))
    if all(settings == full for settings in by_type.values()):
        return _spelled(config, full, model_type)
    sliding = _sliding_settings(by_type)
    if sliding is None:
        raise _too_many(by_type, model_type)
    spelled = _spelled(config, full, model_type)
    if model_type in _WINDOW_BASE:
        spelled[_WINDOW_BASE[model_type]] = sliding["rope_theta"]
        spelled["rope_parameters"] = by_type
        return spelled
    has_one_base = sliding.get("rope_theta") == full.get("rope_theta")
    if model_type in _SCALE_FULL_ONLY and has_one_base:
        spelled["rope_parameters"] = by_type
        return spelled
    raise _too_many(by_type, model_type)


def _sliding_settings(by_type: Mapping[str, Settings]) -> Settings | None:
    """The windowed layers' rotation, if all others are full and it scales nothing."""
    sliding = by_type.get(_SLIDING)
    if sliding is None or by_type.keys() - {_FULL, _SLIDING}:
        return None
    if sliding["rope_type"] != "default":
        return None
    return sliding


def _check_base(older: Settings, parts: Iterable[Settings], source: str) -> None:
    """A base beside those of the layer types must be one of them."""
    base = older.get("rope_theta")
    bases = {part.get("rope_theta") for part in parts}
    if base is not None and base not in bases:
        raise ModelFileError(
            f"the config's {source} is {base!r:.60} and the layer types in its "
            f"rope_parameters have {sorted(bases, key=str)!r:.80}: they contradict "
            "each other"
        )


def _too_many(by_type: Mapping[str, Settings], model_type: str) -> Exception:
    names = ", ".join(sorted(by_type))
    return UnsupportedModelError(
        f"the config's rope_parameters differ between {names:.120}, and mlx-lm's "
        f"definition of {model_type} cannot rotate those layers differently"
    )
