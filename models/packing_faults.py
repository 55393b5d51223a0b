"""The error for a packing of weights that is not read here."""

from __future__ import annotations

from rvllm_local.errors import UnsupportedModelError

_REMEDY = "take a conversion to MLX, or the unquantized model with `rvllm convert`"


def unsupported(method: str, fault: str) -> UnsupportedModelError:
    """`fault` says what a `quantization_config` of that method has or does."""
    return UnsupportedModelError(
        f"the model's quantization {method!r} {fault}; {_REMEDY}"
    )
