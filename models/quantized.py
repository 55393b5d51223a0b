"""Which layers of a module are quantized, and how.

A configuration says it, or packed weights do; and a module's plan can be read back.
Knows MLX's own quantizations (affine in 2 to 8 bits, mxfp4, mxfp8, nvfp4), alone or
mixed. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.config_file import text_config
from rvllm_local.models.gguf.mlx import GROUP_SIZE
from rvllm_local.models.other_quantizations import (
    as_mlx_holds,
    becomes_floats,
    may_widen,
    packed_settings,
)

# Quantizations that other tools name in `quantization_config` and that MLX has, too.
_SAME_AS = {
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}
# Packings without offsets, whose scales are bytes, by their bits and group size.
_FLOATING = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}
_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (16, 32, 64, 128)
_PLAN_KEYS = ("group_size", "bits", "mode")


def quantize_as_stored(
    module: nn.Module,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
) -> None:
    """Make the quantized layers that the weights are for.

    They follow the configuration's plan, in which a layer may have settings of its own.
    Raises `ModelFileError` and `UnsupportedModelError`.
    """
    if _is_ternary(config):
        from mlx_lm.models.bitlinear_layers import bitnet_quantize

        bitnet_quantize(module, dict(other_tools_config(config)))
        return
    plan = _plan(config)
    if plan is None:
        return

    def choose(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        stated = plan.get(path)
        if stated is False or not hasattr(layer, "to_quantized"):
            return False
        if f"{path}.scales" in weights:
            return _of_layer(path, layer, weights, plan)
        if isinstance(stated, dict):
            return dict(stated)
        return stated is True

    _quantize(module, plan, choose)


def _is_ternary(config: Mapping[str, Any]) -> bool:
    """Whether linear layers have three weights and one scale, as BitNet's."""
    other = other_tools_config(config)
    return isinstance(other, Mapping) and other.get("quant_method") == "bitnet"


def narrowest_bits(config: Mapping[str, Any]) -> int | None:
    """The fewest bits of a quantization that a CPU can keep; None if none is named.

    Of one that may become floats none is counted on. Raises as `quantize_as_stored`.
    """
    if _is_ternary(config):
        return None
    plan = _plan(config)
    if plan is None or widens(config):
        return None
    fewest = int(plan["bits"])
    for settings in plan.values():
        if isinstance(settings, dict) and _is_size(settings.get("bits")):
            fewest = min(fewest, settings["bits"])
    return fewest


def _of_layer(
    path: str,
    layer: nn.Module,
    weights: Mapping[str, mx.array],
    plan: Mapping[str, Any],
) -> dict[str, Any]:
    """How a layer's weights are packed: as the map says, or else as their shapes tell.

    Raises `ModelFileError` where the map names the layer and its shapes say otherwise.
    """
    stated = plan.get(path)
    settings: dict[str, Any] = {}
    if isinstance(stated, dict):
        settings.update(stated)
    for key in _PLAN_KEYS:
        if key in plan:
            settings.setdefault(key, plan[key])
    packed = weights.get(f"{path}.weight")
    scales = weights[f"{path}.scales"]
    if packed is None or not packed.ndim or not scales.ndim:
        return settings  # what is missing is said when the weights are put
    columns = layer.weight.shape[-1]
    groups = scales.shape[-1]
    bits, rest = divmod(packed.shape[-1] * 32, columns)
    group_size = 0
    if groups:
        group_size = columns // groups
    told = {"bits": bits, "group_size": group_size}
    mode = _mode(path, weights, bits, group_size)
    if mode is not None:
        told["mode"] = mode
    of_map = {**settings, "mode": settings.get("mode", "affine")}
    if not rest and told.items() <= of_map.items():
        return settings
    is_plausible = mode is not None and bits in _BITS and not rest
    is_named = (
        isinstance(stated, dict) and not told.items() <= {**told, **stated}.items()
    )
    if is_named or not is_plausible or group_size not in _GROUP_SIZES:
        raise ModelFileError(
            f"config.json's quantization has {settings['bits']} bits in groups of "
            f"{settings['group_size']} ({of_map['mode']}) for {path}, and the shapes "
            f"of its weights and scales, {list(packed.shape)} and {list(scales.shape)} "
            f"of {_type_name(scales)}, are not those"
        )
    settings.update(told)
    return settings


def _mode(
    path: str, weights: Mapping[str, mx.array], bits: int, group_size: int
) -> str | None:
    """The packing that a layer's parts show; None if they show none."""
    if f"{path}.biases" in weights:
        return "affine"
    if weights[f"{path}.scales"].dtype == mx.uint8:
        return _FLOATING.get((bits, group_size))
    return None


def _type_name(value: mx.array) -> str:
    return str(value.dtype).removeprefix("mlx.core.")


def _quantize(
    module: nn.Module,
    plan: Mapping[str, Any],
    choose: Callable[[str, nn.Module], bool | dict[str, Any]],
) -> None:
    mode = plan.get("mode", "affine")
    try:
        nn.quantize(
            module,
            group_size=plan["group_size"],
            bits=plan["bits"],
            mode=mode,
            class_predicate=choose,
        )
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise UnsupportedModelError(
            f"config.json's quantization cannot be served: {error}"
        ) from error


def _plan(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration's plan, checked; None if it has none."""
    plan = config.get("quantization") or text_config(config).get("quantization")
    if not plan:
        other = other_tools_config(config)
        if not other or (isinstance(other, Mapping) and becomes_floats(other)):
            return None
        plan = _translated(other)
    has_sizes = isinstance(plan, dict) and (
        _is_size(plan.get("group_size")) and _is_size(plan.get("bits"))
    )
    if not has_sizes:
        raise ModelFileError(
            f"config.json's quantization lacks group_size and bits: {plan!r:.200}"
        )
    assert isinstance(plan, dict)
    if plan["bits"] not in _BITS:
        supported = ", ".join(map(str, _BITS))
        raise ModelFileError(
            f"config.json's quantization has {plan['bits']} bits; MLX knows {supported}"
        )
    mode = plan.get("mode", "affine")
    if mode != "affine" and mode not in _FLOATING.values():
        raise UnsupportedModelError(
            f"config.json's quantization has the mode {mode!r:.40}, which MLX does not "
            "know; take another conversion of the model"
        )
    return plan


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1024


def other_tools_config(config: Mapping[str, Any]) -> Any:
    """What other tools call a quantization, here or in the text model's part."""
    other = config.get("quantization_config")
    if other:
        return other
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return text.get("quantization_config")
    return None


def widens(config: Mapping[str, Any]) -> bool:
    """Whether loading makes wider floats of what other tools packed, or of some of it."""
    other = other_tools_config(config)
    if config.get("quantization") or not isinstance(other, Mapping):
        return False
    return may_widen(other)


def as_mlx_stores(
    config: Mapping[str, Any], weights: dict[str, mx.array], *, as_floats: bool
) -> dict[str, mx.array]:
    """The weights, of which those that other tools packed are as MLX holds them.

    With `as_floats` scales and offsets are float32, and so is what becomes floats.
    """
    other = other_tools_config(config)
    if config.get("quantization") or not isinstance(other, Mapping):
        return weights
    return as_mlx_holds(other, weights, mx.float32 if as_floats else None)


def _translated(other: Any) -> Any:
    """A plan for a `quantization_config`; MLX's own older models keep theirs there."""
    method = other
    if isinstance(other, Mapping):
        method = other.get("quant_method")
        if method is None and "group_size" in other:
            return dict(other)
    if isinstance(method, str) and method in _SAME_AS:
        return dict(_SAME_AS[method])
    packed = packed_settings(other) if isinstance(other, Mapping) else None
    if packed is not None:
        return packed
    raise UnsupportedModelError(
        f"the model's quantization {method!r:.60} is not MLX's own; use the "
        "unquantized model with `rvllm convert`"
    )


def quantize_as_packed(module: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Make quantized layers for weights in groups of 32.

    A layer's number of bits follows from the shapes of its weights and scales.
    """

    def choose(name: str, layer: nn.Module) -> bool | dict[str, Any]:
        scales = weights.get(f"{name}.scales")
        if scales is None or not hasattr(layer, "to_quantized"):
            return False
        packed = weights[f"{name}.weight"]
        columns = scales.shape[-1] * GROUP_SIZE
        bits = packed.shape[-1] * 32 // columns
        return {"group_size": GROUP_SIZE, "bits": bits}

    if any(name.endswith(".scales") for name in weights):
        _quantize(module, {"group_size": GROUP_SIZE, "bits": 4}, choose)


def quantization_of(module: nn.Module) -> dict[str, Any] | None:
    """The plan that would make this module's quantized layers; None if it has none."""
    plan: dict[str, Any] = {}
    leaves = tree_flatten(module.leaf_modules(), is_leaf=nn.Module.is_module)
    for path, layer in leaves:
        if not hasattr(layer, "bits"):
            continue
        settings = _settings_of(layer)
        if not plan:  # the first layer's settings are those of all others
            plan.update(settings)
        if layer.get("global_scale") is not None:
            settings["global_scale"] = True
        plan[path] = settings
    return plan or None


def _settings_of(layer: nn.Module) -> dict[str, Any]:
    settings = {}
    for key in _PLAN_KEYS:
        if hasattr(layer, key):
            settings[key] = getattr(layer, key)
    return settings
