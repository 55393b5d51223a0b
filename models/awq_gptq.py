"""AWQ's and GPTQ's packed weights in MLX's affine form, without a rounding of the codes.

Both hold `w = scale * (code - zero)` in groups of inputs; MLX holds `w = scale * code +
bias`. AWQ's GEMM layout packs eight outputs into a word, in an order of its own; GPTQ
packs inputs, and its first format stores each zero less 1. Layouts are known by what a
configuration calls them, since shapes alone do not tell. Where the inputs of a group are
not side by side, as GPTQ's act-order has them, a layer becomes floats: MLX knows no such
groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from rvllm_local.errors import ModelFileError
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

GPTQ = "gptq"
METHODS = ("awq", GPTQ)
# Where a word of AWQ's holds its eight outputs, first to last.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_BITS = {"awq": (4,), "gptq": (2, 4, 8)}
_LAYOUTS = {"awq": ("gemm",), "gptq": ("gptq", "gptq_v2")}
_WHOLE = -1  # one group for all inputs
_PACKED = ".qweight"


def packed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bits and group size of a `quantization_config` of these methods, for MLX.

    Raises `UnsupportedModelError` for a layout that is not read here.
    """
    method = str(config.get("quant_method"))
    bits = config.get("bits", config.get("w_bit"))
    size = config.get("group_size", config.get("q_group_size"))
    if bits not in _BITS[method]:
        read = " or ".join(map(str, _BITS[method]))
        raise unsupported(method, f"has {bits!r:.20} bits, and {read} are read here")
    layout = _layout(config, method)
    if layout not in _LAYOUTS[method]:
        raise unsupported(method, f"is in the layout {layout!r:.40}")
    if size == _WHOLE:
        size = GROUP_SIZES[-1]
    if type(size) is not int or size <= 0 or size % GROUP_SIZES[-1]:
        raise unsupported(method, f"has groups of {size!r:.20}")
    return {"bits": bits, "group_size": divided_size(size)}


def reorders_inputs(config: Mapping[str, Any]) -> bool:
    """Whether inputs may be grouped in another order than their own (act-order)."""
    is_in_order = config.get("desc_act") is not True or config.get("static_groups")
    return not is_in_order and config.get("group_size") != _WHOLE


def _layout(config: Mapping[str, Any], method: str) -> str:
    if method == "awq":
        return str(config.get("version") or "gemm").lower()
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if config.get("is_marlin_format") is True:
        layout = "marlin"
    return str(layout).lower()


def as_affine(
    config: Mapping[str, Any], weights: Weights, dtype: mx.Dtype | None
) -> Weights:
    """The weights with these methods' layers as MLX packs them.

    `config` is the `quantization_config`. Scales and offsets are of `dtype`, or of the
    stored scales' with None; of half precision, an offset is rounded to it. Raises
    `ModelFileError` for parts that do not fit, and `UnsupportedModelError` for groups of
    a size that MLX does not have.
    """
    if config.get("quant_method") not in METHODS:
        return weights
    affine: Weights = {}
    parts = (_PACKED, ".qzeros", ".scales", ".g_idx")
    layers = [name.removesuffix(_PACKED) for name in weights if name.endswith(_PACKED)]
    packed = {f"{layer}{part}" for layer in layers for part in parts}
    for name, value in weights.items():
        if name not in packed:
            affine[name] = value
    for layer in layers:
        affine.update(_affine_layer(config, weights, layer, dtype))
    return affine


@dataclass(frozen=True, slots=True)
class _Codes:
    """A layer as its words hold it.

    `codes` are `[inputs, outputs]`, `zeros` and `scales` `[groups, outputs]`.
    """

    codes: mx.array
    zeros: mx.array
    scales: mx.array
    bits: int

    @property
    def fits(self) -> bool:
        """Whether the parts go together."""
        inputs, outputs = self.codes.shape
        groups = self.scales.shape[0]
        is_grouped = groups > 0 and inputs % groups == 0
        return is_grouped and self.zeros.shape == self.scales.shape == (groups, outputs)

    @property
    def group_size(self) -> int:
        return int(self.codes.shape[0]) // int(self.scales.shape[0])


def _affine_layer(
    config: Mapping[str, Any], weights: Weights, layer: str, dtype: mx.Dtype | None
) -> Weights:
    unpacked = _unpacked(config, weights, layer)
    size = unpacked.group_size
    if size % GROUP_SIZES[-1]:
        raise unsupported(config["quant_method"], f"has groups of {size} in {layer}")
    dtype = dtype or unpacked.scales.dtype
    groups = weights.get(f"{layer}.g_idx")
    if groups is not None and not _is_in_order(layer, groups, unpacked):
        if not reorders_inputs(config):
            raise ModelFileError(
                f"{layer}.g_idx groups the inputs by activation, and config.json's "
                "quantization names no act-order (desc_act)"
            )
        zeros = unpacked.zeros.T
        scales = unpacked.scales.T
        numbers = numbers_of(unpacked.codes.T, zeros, scales, groups)
        return {f"{layer}.weight": numbers.astype(dtype)}
    scales = unpacked.scales.astype(mx.float32)
    biases = -(unpacked.zeros.astype(mx.float32) * scales)
    times = size // divided_size(size)
    return {
        f"{layer}.weight": words_of(unpacked.codes.T, unpacked.bits),
        f"{layer}.scales": mx.repeat(scales.T, times, axis=1).astype(dtype),
        f"{layer}.biases": mx.repeat(biases.T, times, axis=1).astype(dtype),
    }


def _unpacked(config: Mapping[str, Any], weights: Weights, layer: str) -> _Codes:
    for part in (".qzeros", ".scales"):
        if f"{layer}{part}" not in weights:
            raise ModelFileError(f"{layer}.qweight has no {part[1:]} beside it")
    scales = weights[f"{layer}.scales"]
    words = weights[f"{layer}{_PACKED}"]
    zero_words = weights[f"{layer}.qzeros"]
    parts = (words, zero_words, scales)
    if any(part.ndim != 2 for part in parts):
        raise _misfit(layer, *parts)
    words = words.view(mx.uint32)
    zero_words = zero_words.view(mx.uint32)
    if config["quant_method"] == "awq":
        unpacked = _Codes(_awq_codes(words), _awq_codes(zero_words), scales, 4)
    else:
        bits = _gptq_bits(config, words, weights.get(f"{layer}.g_idx"))
        zeros = codes_of(zero_words, bits)
        if _layout(config, "gptq") == "gptq":
            zeros = (zeros + 1) & ((1 << bits) - 1)
        unpacked = _Codes(codes_of(words.T, bits).T, zeros, scales, bits)
    if not unpacked.fits:
        raise _misfit(layer, *parts)
    return unpacked


def _gptq_bits(
    config: Mapping[str, Any], words: mx.array, order: mx.array | None
) -> int:
    """Bits of a layer: some writers give layers their own, and all the inputs' order."""
    stated = int(config["bits"])
    if order is None or not order.size:
        return stated
    bits, rest = divmod(words.shape[0] * WORD, order.size)
    if rest or bits not in _BITS["gptq"]:
        raise unsupported("gptq", f"has {words.shape[0]} words for {order.size} inputs")
    return bits


def _is_in_order(layer: str, groups: mx.array, unpacked: _Codes) -> bool:
    """Whether each group's inputs are side by side. `groups` may be left empty."""
    if not groups.size:
        return True
    inputs = len(unpacked.codes)
    stated = np.array(groups)
    if stated.shape != (inputs,) or stated.min() < 0:
        raise ModelFileError(
            f"{layer}.g_idx has the shape {list(stated.shape)} for {inputs} inputs, or "
            "groups below 0"
        )
    if stated.max() >= len(unpacked.scales):
        raise ModelFileError(
            f"{layer}.g_idx names group {stated.max()}, and there are scales of "
            f"{len(unpacked.scales)}"
        )
    return np.array_equal(stated, np.arange(inputs) // unpacked.group_size)


def _misfit(layer: str, *parts: mx.array) -> ModelFileError:
    shapes = ", ".join(str(list(part.shape)) for part in parts)
    return ModelFileError(
        f"{layer}: the shapes of its qweight, qzeros and scales, {shapes}, do not go "
        "together"
    )


def _awq_codes(words: mx.array) -> mx.array:
    """Codes of words that hold eight outputs each in AWQ's order."""
    rows = words.shape[0]
    in_places = codes_of(words, 4).reshape(rows, -1, len(_AWQ_PLACES))
    return in_places[..., mx.array(_AWQ_PLACES)].reshape(rows, -1)
