"""Activations by the names that configurations have for them."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from rvllm_local.errors import UnsupportedModelError

_BY_NAME: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": mx.tanh,
}


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """The function of this name. Raises `UnsupportedModelError`."""
    function = _BY_NAME.get(name)
    if function is None:
        supported = ", ".join(_BY_NAME)
        raise UnsupportedModelError(
            f"the activation {name!r:.60} of this encoder is not supported; known are "
            f"{supported}"
        )
    return function
