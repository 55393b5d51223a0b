"""Compares the rotations of a built module with those that its configuration states.

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
from rvllm_local.models.longrope import attention_factor

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


def enforce_rotations(module: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` if a module rotates otherwise than is stated.

    Settings of YaRN that definitions do not read are put into the modules.
    """
    settings = list(_stated_settings(config))
    bases = sorted(set(_stated_bases(config)))
    layers = _rotation_modules(module)
    if not settings:
        return  # no base is stated: the definition's own is what the family has
    _put_rotated_share(layers, config)
    scaled = [each for each in settings if _is_scaled(each)]
    for each in scaled:
        _put_yarn(layers, each)
        _put_longrope(layers, each)
    for name, layer in layers.items():
        periods = _periods_of(layer)
        stated = _stated_periods(bases, scaled, len(periods))
        if not _is_among(periods, stated):
            longest = periods[np.isfinite(periods)].max()
            raise UnsupportedModelError(
                f"mlx-lm's definition rotates {name} in periods up to {longest:.4g}, "
                f"which is not what the config states ({_shown(bases, scaled)})"
            )
    for each in scaled:
        _check_applied(layers, each)


def _put_rotated_share(
    layers: Mapping[str, nn.Module], config: Mapping[str, Any]
) -> None:
    """Rotate a part of each head where a definition rotates all of it, unasked."""
    head_dim = config.get("head_dim")
    share = config.get("partial_rotary_factor")
    is_latent = "qk_rope_head_dim" in config
    if type(head_dim) is not int or not isinstance(share, int | float) or is_latent:
        return
    dims = int(head_dim * share)
    for layer in layers.values():
        if isinstance(layer, nn.RoPE) and layer.dims == head_dim:
            layer.dims = dims


def _stated_periods(
    bases: list[float],
    scaled: list[Settings],
    count: int,
) -> list[Periods]:
    """The periods of each base and of each scaled rotation, for `count` pairs."""
    stated = []
    for base in bases:
        stated.append(_plain_periods(base, count))
    for settings in scaled:
        stated.append(_scaled_periods(settings, count))
    return stated


def _stated_settings(config: Mapping[str, Any]) -> Iterator[Settings]:
    """Every object of rotation settings in a normalised configuration."""
    for part in _parts(config):
        stated = part.get("rope_parameters")
        if not isinstance(stated, Mapping):
            continue
        nested = [each for each in stated.values() if isinstance(each, Mapping)]
        yield from nested or [stated]


def _stated_bases(config: Mapping[str, Any]) -> Iterator[float]:
    """Every base of a rotation, wherever it stands."""
    for part in _parts(config):
        for key in _BASES:
            bases = part.get(key)
            if not isinstance(bases, list):
                bases = [bases]
            for base in bases:
                if isinstance(base, int | float) and not isinstance(base, bool):
                    yield float(base)
    for settings in _stated_settings(config):
        base = settings.get("rope_theta")
        if isinstance(base, int | float):
            yield float(base)


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
    """The module's parts that rotate, by name."""
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
        pairs = layer.dims // 2
        plain = _plain_periods(float(layer.base), pairs)
        return plain / float(layer.scale)
    periods = layer._freqs.astype(mx.float32)
    return np.array(periods).astype(np.float64)


def _plain_periods(base: float, count: int) -> Periods:
    """The periods of a rotation that is not scaled."""
    if count == 0:
        return np.ones(0)
    exponents = np.arange(count, dtype=np.float64) / count
    periods: Periods = base**exponents
    return periods


def _scaled_periods(settings: Settings, count: int) -> Periods:
    """The periods that transformers computes for these settings."""
    base = float(settings["rope_theta"])
    periods = _plain_periods(base, count)
    kind = settings.get("rope_type")
    if kind == "longrope":
        factors = np.array(settings["long_factor"], dtype=np.float64)
        if len(factors) != count:
            return periods
        return periods * factors
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
    turns = original / (2 * math.pi * periods)
    share = (turns - low) / (high - low)
    smooth = np.clip(share, 0.0, 1.0)
    speed = (1 - smooth) / factor + smooth
    scaled: Periods = periods / speed
    return scaled


def _yarn_periods(periods: Periods, settings: Settings, factor: float) -> Periods:
    base = float(settings["rope_theta"])
    pairs = len(periods)
    dims = 2 * pairs
    original = float(settings.get("original_max_position_embeddings", 4096))

    def dimension(turns: float) -> float:
        """The one that turns so often over the original context."""
        length = original / (turns * 2 * math.pi)
        return dims * math.log(length) / (2 * math.log(base))

    fast = settings.get("beta_fast") or 32
    slow = settings.get("beta_slow") or 1
    low = dimension(float(fast))
    high = dimension(float(slow))
    if settings.get("truncate", True):
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, dims - 1)
    if low == high:
        high += 0.001
    steps = (np.arange(pairs) - low) / (high - low)
    ramp = np.clip(steps, 0, 1)
    scaled_speed = ramp / (factor * periods)
    plain_speed = (1 - ramp) / periods
    scaled: Periods = 1 / (scaled_speed + plain_speed)
    return scaled


def _put_yarn(layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Give YaRN's modules what definitions do not read.

    That is `truncate` and `attention_factor`.
    """
    if settings.get("rope_type") not in _YARN:
        return
    for layer in layers.values():
        if type(layer).__name__ != "YarnRoPE":
            continue
        if settings.get("truncate") is False:
            periods = _scaled_periods(settings, layer.dims // 2)
            layer._freqs = mx.array(periods.astype(np.float32))
        factor = settings.get("attention_factor")
        if factor is not None:
            layer.mscale = float(factor)


def _put_longrope(layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Give longrope's modules the factor that the settings state.

    Definitions take one that follows from the lengths.
    """
    factor = attention_factor(settings)
    if settings.get("rope_type") != "longrope" or factor is None:
        return
    for layer in layers.values():
        if type(layer).__name__ == "SuScaledRoPE":
            layer._scale = factor


def _check_applied(layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Some module must rotate by these settings, or nothing reads them."""
    for layer in layers.values():
        periods = _periods_of(layer)
        stated = _scaled_periods(settings, len(periods))
        if _is_among(periods, [stated]):
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
    numbers = [f"{base:g}" for base in bases]
    text = "base " + " or ".join(numbers)
    for settings in scaled:
        text += f", {settings['rope_type']} by {settings.get('factor')}"
    return text
