"""Activations by the names that configurations have for them."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.encoders import cpu_activations

_Activation = Callable[[mx.array], mx.array]


def _where_quicker(general: _Activation, on_cpu: _Activation) -> _Activation:
    """`on_cpu` for float32 numbers on a CPU, else `general`."""

    def activate(x: mx.array) -> mx.array:
        if x.dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu):
            return on_cpu(x)
        return general(x)

    return activate


_GELU = _where_quicker(nn.gelu, cpu_activations.gelu)
_GELU_APPROX = _where_quicker(nn.gelu_approx, cpu_activations.gelu_approx)
_SILU = _where_quicker(nn.silu, cpu_activations.silu)
_BY_NAME: dict[str, _Activation] = {
    "gelu": _GELU,
    "gelu_new": _GELU_APPROX,
    "gelu_pytorch_tanh": _GELU_APPROX,
    "relu": nn.relu,
    "silu": _SILU,
    "swish": _SILU,
    "tanh": mx.tanh,
}


def activation(name: str) -> _Activation:
    """The function of this name. Raises `UnsupportedModelError`."""
    function = _BY_NAME.get(name)
    if function is None:
        supported = ", ".join(_BY_NAME)
        raise UnsupportedModelError(
            f"the activation {name!r:.60} of this encoder is not supported; known are "
            f"{supported}"
        )
    return function
