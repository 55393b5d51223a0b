"""Reads a folder's weights and puts them into a module, each checked for type and shape.

Knows names, types and shapes; quantization is `quantized`.
"""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import ModelFileError
from rvllm_local.models.corrections import put_router_biases
from rvllm_local.models.published_weights import as_definitions_read
from rvllm_local.models.safetensors_check import weight_files

_EXPERT = re.compile(r".*\.experts\.\d+\..*\.weight")
_PART_OF_EXPERT = re.compile(r"(.*\.experts\.\d+\..*)\.(scales|biases)")
# What a family's clean-up can end in where the weights are another family's.
_SANITIZE_ERRORS = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
)


def folder_weights(folder: Path) -> dict[str, mx.array]:
    """All weights of a folder by name. Raises `ModelFileError`."""
    weights: dict[str, mx.array] = {}
    for path in weight_files(folder):
        shard = _read_safetensors(path)
        repeated = weights.keys() & shard.keys()
        if repeated:
            raise ModelFileError(
                f"{path}: weight {min(repeated)!r} is also in another file"
            )
        weights.update(shard)
    return weights


def _read_safetensors(path: Path) -> dict[str, mx.array]:
    try:
        loaded = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: MLX cannot read it: {error}") from error
    assert isinstance(loaded, dict)
    return loaded


def sanitized(
    path: Path, module: nn.Module, weights: dict[str, mx.array]
) -> dict[str, mx.array]:
    """The weights as the family's own clean-up leaves them. Raises `ModelFileError`."""
    try:
        weights = as_definitions_read(module, weights)
        if not hasattr(module, "sanitize"):
            return weights
        weights = put_router_biases(module, weights)
        return _cleaned(module, weights)
    except _SANITIZE_ERRORS as error:
        raise ModelFileError(
            f"{path}: the weights are not those of this architecture: {error!r:.300}"
        ) from error


def _cleaned(module: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The weights after the definition's clean-up.

    Many stack the weights of single experts and leave their scales and offsets. These
    are shown to it once more, under the weights' names; experts that have none are blank.
    """
    blank = mx.zeros((1, 1))
    blanks = {}
    for name in weights:
        if _EXPERT.fullmatch(name):
            blanks[name] = blank
    cleaned = dict(module.sanitize(weights))
    left: dict[str, dict[str, mx.array]] = {"scales": {}, "biases": {}}
    for name in list(cleaned):
        part = _PART_OF_EXPERT.fullmatch(name)
        if part is not None:
            left[part[2]][f"{part[1]}.weight"] = cleaned.pop(name)
    for kind, values in left.items():
        stacked = module.sanitize({**blanks, **values}) if values else {}
        for name, value in stacked.items():
            whole = cleaned.get(name)
            if whole is not None and whole.dtype == mx.uint32:
                cleaned[f"{name.removesuffix('.weight')}.{kind}"] = value
    return cleaned


def put_weights(path: Path, module: nn.Module, weights: dict[str, mx.array]) -> None:
    """Give the module its weights. Raises `ModelFileError` for other types or shapes."""
    for name, expected in tree_flatten(module.parameters()):
        if name not in weights:
            continue  # the module says so itself
        given = weights[name]
        if not _is_of_type(given.dtype, expected.dtype):
            remedy = ""
            if mx.issubdtype(given.dtype, mx.unsignedinteger):
                remedy = (
                    ": it is packed, and config.json's quantization does not say so"
                )
            raise ModelFileError(
                f"{path}: weight {name!r} is of type {_type_name(given.dtype)}, and "
                f"the model takes {_type_name(expected.dtype)}{remedy}"
            )
    try:
        module.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelFileError(
            f"{path}: the weights do not fit the configuration: {detail}"
        ) from error


def _is_of_type(given: mx.Dtype, expected: mx.Dtype) -> bool:
    """True for floats of any width where floats are expected.

    Packed weights must be of exactly their type.
    """
    if mx.issubdtype(expected, mx.floating):
        return bool(mx.issubdtype(given, mx.floating))
    is_packed = mx.issubdtype(expected, mx.unsignedinteger)
    return given == expected or not is_packed


def _type_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def check_finite(path: Path, module: nn.Module) -> None:
    """Raise `ModelFileError` for weights that are not finite numbers.

    One of them would turn every answer into noise.
    """
    for name, value in tree_flatten(module.parameters()):
        if not mx.issubdtype(value.dtype, mx.floating):
            continue
        if mx.isfinite(value).all().item():
            continue
        shown = name.replace(".inner.", ".")  # behind a stand-in
        fault = "infinite"
        if mx.isnan(value).any().item():
            fault = "not numbers (NaN)"
        raise ModelFileError(
            f"{path}: weight {shown!r} holds values that are {fault}; fetch it again"
        )
