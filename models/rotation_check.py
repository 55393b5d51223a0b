"""Holds the rotations of a built module against those that its configuration states.

A definition that does not read a setting rotates by a default and says nothing. So the
periods of every rotation module are compared with what the configuration means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local.errors import UnsupportedModelError

Periods = npt.NDArray[np.float64]
Settings = Mapping[str, Any]

# Keys under which configurations have the base of a rotation, anywhere.
_BASES = (
    "rope_theta",
    "rotary_emb_base",
    "rope_local_base_freq",
    "rope_local_theta",
    "swa_rope_theta",
    "global_rope_theta",
    "local_rope_theta",
    "compress_rope_theta",
    "rope_freq_constant",
)
_YARN = ("yarn", "deepseek_yarn")
_TOLERANCE = 1e-3


def settle_rotations(module: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` if a module rotates otherwise than is stated.

    Settings of YaRN that definitions do not read are put into the modules.
    """
    settings = list(_stated_settings(config))
    bases = sorted(set(_stated_bases(config)))
    layers = _rotation_modules(module)
    if not settings:
        return  # no base is stated: the definition's own is what the family has
    scaled = [each for each in settings if _is_scaled(each)]
    for each in scaled:
        _put_yarn(layers, each)
    for name, layer in layers.items():
        periods = _periods_of(layer)
        plain = [_plain_periods(base, len(periods)) for base in bases]
        stated = [_scaled_periods(each, len(periods)) for each in scaled]
        if not _is_among(periods, [*plain, *stated]):
            raise UnsupportedModelError(
                f"mlx-lm's definition rotates {name} in periods up to "
                f"{periods[np.isfinite(periods)].max():.4g}, which is not what the "
                f"config states ({_shown(bases, scaled)})"
            )
    for each in scaled:
        _check_applied(layers, each)


def _stated_settings(config: Mapping[str, Any]) -> Iterator[Settings]:
    """Every object of rotation settings in a normalised configuration."""
    for part in _parts(config):
        stated = part.get("rope_parameters")
        if not isinstance(stated, Mapping):
            continue
        nested = [each for each in stated.values() if isinstance(each, Mapping)]
        yield from nested or [stated]


def _stated_bases(config: Mapping[str, Any]) -> Iterator[float]:
    for part in _parts(config):
        for key in _BASES:
            value = part.get(key)
            for base in value if isinstance(value, list) else [value]:
                if isinstance(base, int | float) and not isinstance(base, bool):
                    yield float(base)
    for settings in _stated_settings(config):
        if isinstance(settings.get("rope_theta"), int | float):
            yield float(settings["rope_theta"])


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and the objects in it that may hold rotation settings."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield value


def _is_scaled(settings: Settings) -> bool:
    """True for a kind whose periods are known here and are not those of its base."""
    if "rope_theta" not in settings:
        return False
    kind = settings.get("rope_type")
    if kind == "longrope":
        return isinstance(settings.get("long_factor"), list)
    if kind not in (*_YARN, "linear", "llama3"):
        return False
    return bool(settings.get("factor", 1) != 1)


def _rotation_modules(module: nn.Module) -> dict[str, nn.Module]:
    layers = {}
    for name, layer in module.named_modules():
        periods = getattr(layer, "_freqs", None)
        has_periods = isinstance(periods, mx.array) and periods.ndim == 1
        if isinstance(layer, nn.RoPE) or has_periods:
            layers[name] = layer
    return layers


def _periods_of(layer: nn.Module) -> Periods:
    """Positions for a radian, of each pair of dimensions."""
    if isinstance(layer, nn.RoPE):
        return _plain_periods(float(layer.base), layer.dims // 2) / float(layer.scale)
    return np.array(layer._freqs.astype(mx.float32)).astype(np.float64)


def _plain_periods(base: float, count: int) -> Periods:
    if count == 0:
        return np.ones(0)
    periods: Periods = base ** (np.arange(count, dtype=np.float64) / count)
    return periods


def _scaled_periods(settings: Settings, count: int) -> Periods:
    """The periods that transformers computes for these settings."""
    periods = _plain_periods(float(settings["rope_theta"]), count)
    kind = settings.get("rope_type")
    if kind == "longrope":
        long = np.array(settings["long_factor"], dtype=np.float64)
        return periods * long if len(long) == count else periods
    factor = float(settings["factor"])
    if kind == "linear":
        return periods * factor
    if kind == "llama3":
        return _llama3_periods(periods, settings, factor)
    return _yarn_periods(periods, settings, factor)


def _llama3_periods(periods: Periods, settings: Settings, factor: float) -> Periods:
    low = float(settings.get("low_freq_factor", 1.0))
    high = float(settings.get("high_freq_factor", 4.0))
    original = float(settings.get("original_max_position_embeddings", 8192))
    ratio = original / (2 * math.pi * periods)
    smooth = np.clip((ratio - low) / (high - low), 0.0, 1.0)
    scaled: Periods = periods / ((1 - smooth) / factor + smooth)
    return scaled


def _yarn_periods(periods: Periods, settings: Settings, factor: float) -> Periods:
    base, dims = float(settings["rope_theta"]), 2 * len(periods)
    original = float(settings.get("original_max_position_embeddings", 4096))

    def dimension(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(float(settings.get("beta_fast") or 32))
    high = dimension(float(settings.get("beta_slow") or 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(len(periods)) - low) / (high - low), 0, 1)
    scaled: Periods = 1 / (ramp / (factor * periods) + (1 - ramp) / periods)
    return scaled


def _put_yarn(layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Give YaRN's modules what definitions do not read: `truncate`, `attention_factor`."""
    if settings.get("rope_type") not in _YARN:
        return
    for layer in layers.values():
        if type(layer).__name__ != "YarnRoPE":
            continue
        if settings.get("truncate") is False:
            periods = _scaled_periods(settings, layer.dims // 2)
            layer._freqs = mx.array(periods.astype(np.float32))
        if settings.get("attention_factor") is not None:
            layer.mscale = float(settings["attention_factor"])


def _check_applied(layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Some module must rotate by these settings, or nothing reads them."""
    for layer in layers.values():
        periods = _periods_of(layer)
        if _is_among(periods, [_scaled_periods(settings, len(periods))]):
            return
    raise UnsupportedModelError(
        f"the config scales positions ({settings['rope_type']}, factor "
        f"{settings.get('factor')}), and mlx-lm's definition does not: its answers "
        "would be wrong"
    )


def _is_among(periods: Periods, candidates: list[Periods]) -> bool:
    finite = np.isfinite(periods)  # an infinite period is a dimension at rest
    for candidate in candidates:
        if np.allclose(periods[finite], candidate[finite], rtol=_TOLERANCE):
            return True
    return False


def _shown(bases: list[float], scaled: list[Settings]) -> str:
    text = "base " + " or ".join(f"{base:g}" for base in bases)
    for settings in scaled:
        text += f", {settings['rope_type']} by {settings.get('factor')}"
    return text
