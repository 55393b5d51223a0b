"""Matrices in the formats MXFP4 and MXFP8 under other tools' names, as MLX holds them.

Both have codes and scales as MLX has them: groups of 32, whose scales are powers of two in
a byte. MLX packs codes into words, the first in the lowest bits, which is their order.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from rvllm_local.errors import ModelFileError
from rvllm_local.models.float8 import OF_ACTIVATIONS

Weights = dict[str, mx.array]

SETTINGS: dict[int, dict[str, Any]] = {
    4: {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    8: {"bits": 8, "group_size": 32, "mode": "mxfp8"},
}
_GROUP = 32
_CODES = ("weight", "weight_packed")


def as_mlx_packs(weights: Weights) -> Weights:
    """The weights with these codes and scales under MLX's names.

    Raises `ModelFileError` for codes without scales, and for scales that do not fit.
    """
    renamed = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        is_codes = part in _CODES and value.dtype == mx.uint8
        if is_codes:
            scales = weights.get(f"{layer}.weight_scale")
            _check(layer, part, value, scales)
            renamed[f"{layer}.weight"] = value.view(mx.uint32)
        elif part == "weight_scale":
            renamed[f"{layer}.scales"] = value
        elif not name.endswith(OF_ACTIVATIONS):
            renamed[name] = value
    return renamed


def _check(
    layer: str,
    part: str,
    codes: mx.array,
    scales: mx.array | None,
) -> None:
    if scales is None:
        raise ModelFileError(f"{layer}.{part} has no weight_scale beside it")
    inputs = codes.shape[-1]
    if part == "weight_packed":
        inputs *= 2  # in a byte
    groups, rest = divmod(inputs, _GROUP)
    expected = (*codes.shape[:-1], groups)
    fits = scales.shape == expected
    if rest or not fits or scales.dtype != mx.uint8:
        raise ModelFileError(
            f"{layer}: codes {list(codes.shape)} and scales {list(scales.shape)} of "
            f"{scales.dtype} are not of groups of {_GROUP}"
        )
