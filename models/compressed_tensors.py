"""Matrices that compressed-tensors packed, as MLX holds them, and which become floats.

Of whole numbers a weight is `scale * (code - zero)`, with signed codes in groups of a
row's inputs. MLX's words hold the same codes raised by half their range, in the same
order, so that words are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models import mx_packed
from rvllm_local.models.affine_words import (
    GROUP_SIZES,
    WORD,
    codes_of,
    divided_size,
    numbers_of,
    words_of,
)
from rvllm_local.models.packing_faults import unsupported

Weights = dict[str, mx.array]

METHOD = "compressed-tensors"
_PACKED = "pack-quantized"
_BYTES = ("int-quantized", "naive-quantized")
_FLOATS = {
    8: ("float-quantized", "naive-quantized"),
    4: ("nvfp4-pack-quantized",),
}
_REORDERED = (True, "group", "dynamic")
_MX = {4: "mxfp4-pack-quantized", 8: "mxfp8-quantized"}
_BITS = (4, 8)
# Where a rotation is in the stored weights already; elsewhere activations are rotated.
_MERGED = ("weight_input", "weight_output")
_PARTS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
)


def becomes_floats(config: Mapping[str, Any]) -> bool:
    """Whether all that is packed is floats of 8 or 4 bits that MLX does not multiply.

    Raises `UnsupportedModelError`.
    """
    return _only_kind(config) == "float"


def _only_kind(config: Mapping[str, Any]) -> str:
    kinds = set()
    for layout, weights in _groups(config):
        kinds.add(_kind(layout, weights))
    if len(kinds) > 1:
        mixed = " and ".join(sorted(kinds))
        raise _unsupported(f"mixes {mixed} in one model")
    return kinds.pop()


def packed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bits and group size of what stays packed, for MLX; layers may differ from them.

    Raises `UnsupportedModelError` for a layout that is not read here.
    """
    _, weights = _groups(config)[0]
    if _only_kind(config) == "mx":
        return mx_packed.SETTINGS[weights["num_bits"]]
    size = weights.get("group_size") or GROUP_SIZES[-1]
    if type(size) is not int or size <= 0 or size % GROUP_SIZES[-1]:
        size = GROUP_SIZES[-1]
    return {"bits": weights["num_bits"], "group_size": divided_size(size)}


def reorders_inputs(config: Mapping[str, Any]) -> bool:
    """Whether inputs may be grouped in another order than their own (actorder)."""
    orders = [weights.get("actorder") for _, weights in _groups(config)]
    return any(order in _REORDERED for order in orders)


def block_of(config: Mapping[str, Any]) -> Any:
    """`[rows, columns]` of a scale of 8-bit floats; None if they are not in blocks."""
    for _, weights in _groups(config):
        stated = weights.get("block_structure")
        if isinstance(stated, str):
            return [int(part) for part in stated.split("x") if part.isdecimal()]
        if stated is not None:
            return stated
    return None


def activation_rounding(config: Mapping[str, Any]) -> str | None:
    """What the configuration says of rounded activations; None if they stay as they are."""
    stated = config.get("config_groups")
    if not isinstance(stated, Mapping):
        return None
    for group in stated.values():
        if not isinstance(group, Mapping):
            continue
        inputs = group.get("input_activations")
        if isinstance(inputs, Mapping):
            bits = inputs.get("num_bits")
            return f"input_activations of {bits!r:.20} bits"
    return None


def _groups(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The layout and the settings of the weights of each group of layers."""
    _check_rotations(config)
    stated = config.get("config_groups")
    groups = []
    if isinstance(stated, Mapping):
        for group in stated.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                layout = group.get("format") or config.get("format")
                groups.append((str(layout), weights))
    if not groups:
        raise ModelFileError(
            "config.json's quantization names no config_groups with weights: "
            f"{config!r:.200}"
        )
    return groups


def _check_rotations(config: Mapping[str, Any]) -> None:
    """Refuse rotations of activations: weights alone would give other numbers."""
    transforms = config.get("transform_config")
    if not transforms:
        return
    try:
        schemes = dict(transforms["config_groups"])
        places = [(name, at) for name, each in schemes.items() for at in each["apply"]]
        locations = {name: at["location"] for name, at in places if not _is_merged(at)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(
            f"config.json's transform_config cannot be read: {transforms!r:.200}"
        ) from error
    for name, location in locations.items():
        raise _unsupported(
            f"rotates activations ({name!r:.40} of its transform_config, at "
            f"{location!r:.40})"
        )


def _is_merged(at: Mapping[str, Any]) -> bool:
    return at["location"] in _MERGED


def _kind(layout: str, weights: Mapping[str, Any]) -> str:
    """`int`, `mx` or, of other floats, `float`."""
    bits = weights.get("num_bits")
    if weights.get("type") == "float":
        for width, layouts in _FLOATS.items():
            if bits == width and layout in layouts:
                return "float"
        if bits in _MX and layout == _MX[bits]:
            return "mx"
    elif bits in _BITS and (layout == _PACKED or (layout in _BYTES and bits == 8)):
        return "int"
    raise _unsupported(f"has {bits!r:.20} bits in the layout {layout!r:.40}")


def _unsupported(fault: str) -> UnsupportedModelError:
    return unsupported(METHOD, fault)


def as_mlx_packs(
    config: Mapping[str, Any],
    weights: Weights,
    dtype: mx.Dtype | None,
) -> Weights:
    """The weights with packed layers as MLX packs them.

    Scales and offsets of whole numbers are of `dtype`, or of the stored scales' with
    None. Layers whose inputs are not grouped in their order become floats. Raises
    `ModelFileError` for parts that do not fit.
    """
    if _only_kind(config) == "mx":
        return mx_packed.as_mlx_packs(weights)
    _, settings = _groups(config)[0]
    bits = int(settings["num_bits"])
    affine = dict(weights)
    for layer in _packed_layers(weights):
        parts = {}
        for part in _PARTS:
            value = affine.pop(f"{layer}.{part}", None)
            if value is not None:
                parts[part] = value
        converted = _affine_layer(layer, parts, bits, dtype)
        affine.update(converted)
    return affine


def _packed_layers(weights: Weights) -> list[str]:
    layers = []
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        is_of_bytes = part == "weight" and value.dtype == mx.int8
        if part == "weight_packed" or is_of_bytes:
            layers.append(layer)
    return layers


@dataclass(frozen=True, slots=True)
class _Codes:
    """A layer's codes in MLX's words, `[outputs, inputs * bits / 32]`."""

    words: mx.array
    bits: int
    inputs: int


def _affine_layer(
    layer: str,
    parts: Weights,
    stated_bits: int,
    dtype: mx.Dtype | None,
) -> Weights:
    scales = parts.get("weight_scale")
    if scales is None:
        raise ModelFileError(
            f"{layer}: packed weights have no weight_scale beside them"
        )
    codes = _codes(layer, parts, stated_bits)
    dtype = dtype or scales.dtype
    factors = scales.astype(mx.float32)
    if scales.ndim == 1:
        factors = factors[:, None]
    size = _group_size(layer, codes, factors)
    zeros = _zeros(codes, parts.get("weight_zero_point"))
    groups = parts.get("weight_g_idx")
    if groups is not None and not _is_in_order(layer, codes, groups, factors):
        centres = mx.broadcast_to(zeros, factors.shape)
        raised = codes_of(codes.words, codes.bits)
        numbers = numbers_of(raised, centres, factors, groups)
        return {f"{layer}.weight": numbers.astype(dtype)}
    offsets = -(zeros * factors)
    times = size // divided_size(size)
    factors = mx.repeat(factors, times, axis=1)
    offsets = mx.repeat(offsets, times, axis=1)
    return {
        f"{layer}.weight": codes.words,
        f"{layer}.scales": factors.astype(dtype),
        f"{layer}.biases": offsets.astype(dtype),
    }


def _codes(layer: str, parts: Weights, stated_bits: int) -> _Codes:
    """The codes; where a layer states its shape, it may have other bits."""
    in_bytes = parts.get("weight")
    if in_bytes is not None:
        raised = in_bytes.astype(mx.int32) + 128
        words = words_of(raised.astype(mx.uint32), 8)
        return _Codes(words, 8, in_bytes.shape[-1])
    packed = parts["weight_packed"]
    shape = parts.get("weight_shape")
    held = packed.shape[-1] * WORD
    bits = stated_bits
    inputs = held // bits
    if shape is not None:
        inputs = np.array(shape).tolist()[-1]
        bits = held // inputs
    is_whole = inputs * bits == held
    if packed.ndim != 2 or bits not in _BITS or not is_whole:
        raise ModelFileError(
            f"{layer}: {packed.shape[-1]} words a row do not hold {inputs} inputs"
        )
    return _Codes(packed.view(mx.uint32), bits, inputs)


def _group_size(layer: str, codes: _Codes, factors: mx.array) -> int:
    """The inputs of a group; checks that scales are of so many rows and groups."""
    outputs = len(codes.words)
    groups = factors.shape[-1]
    size, rest = divmod(codes.inputs, groups)
    if factors.shape != (outputs, groups) or rest:
        raise ModelFileError(
            f"{layer}: scales {list(factors.shape)} do not fit {outputs} rows of "
            f"{codes.inputs}"
        )
    if size % GROUP_SIZES[-1]:
        raise _unsupported(f"has groups of {size} in {layer}")
    return size


def _zeros(codes: _Codes, stored: mx.array | None) -> mx.array:
    """Zeros, raised as the codes are: `[outputs, groups]`, or one for all.

    They are packed along the outputs, the last word with fewer of them. Bytes are not
    packed.
    """
    half = float(1 << (codes.bits - 1))
    if stored is None:
        return mx.array(half)
    outputs = len(codes.words)
    if stored.dtype == mx.int8:
        zeros = stored.reshape(outputs, -1)
        return zeros.astype(mx.float32) + half
    words = stored.view(mx.uint32)
    across = codes_of(words.T, codes.bits)
    zeros = across.T[:outputs]
    return zeros.astype(mx.float32)


def _is_in_order(
    layer: str,
    codes: _Codes,
    groups: mx.array,
    factors: mx.array,
) -> bool:
    """Whether each group's inputs are side by side. Groups of -1 stand for that."""
    stated = np.array(groups)
    if stated.max() < 0:
        return True
    count = factors.shape[-1]
    is_whole = stated.shape == (codes.inputs,) and stated.min() >= 0
    if not is_whole or stated.max() >= count:
        raise ModelFileError(
            f"{layer}: weight_g_idx {list(stated.shape)} does not give each of "
            f"{codes.inputs} inputs one of {count} groups"
        )
    rises = stated[1:] >= stated[:-1]
    return bool(rises.all())
