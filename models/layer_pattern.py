"""Layers of two kinds, where a definition knows only that every n-th one is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError

FULL = "full_attention"


def put_full_interval(
    fields: dict[str, Any],
    name: str,
    layer_types: Sequence[Any],
    between: str,
    model_type: str,
) -> None:
    """Set the field `name` to n, where every n-th layer is full and others `between`.

    Without a full layer n is beyond the last. Raises `UnsupportedModelError` for other
    patterns and `ModelFileError` where the field contradicts the layers.
    """
    has_full = FULL in layer_types
    interval = len(layer_types) + 1
    if has_full:
        interval = layer_types.index(FULL) + 1
    for number, kind in enumerate(layer_types, start=1):
        expected = between
        if number % interval == 0:
            expected = FULL
        if kind != expected:
            raise UnsupportedModelError(
                f"the config's layer_types are not every {interval}th layer a full "
                f"one, and mlx-lm's definition of {model_type} knows nothing else"
            )
    stated = fields.get(name)
    if has_full and type(stated) is int and stated != interval:
        raise ModelFileError(
            f"the config's {name} is {stated} and its layer_types have a full layer "
            f"every {interval}: they contradict each other"
        )
    fields[name] = interval
