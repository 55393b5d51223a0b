"""Reads LoRA adapters from folders, in mlx-lm's format and in PEFT's.

Everything is checked before a model's weights are read: names, shapes, ranks, numbers.
Knows nothing of how adapters are computed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from rvllm_local.models.safetensors_check import (
    StoredTensor,
    check_safetensors,
    read_header,
)
from rvllm_local.option import expanded

_CONFIG = "adapter_config.json"
_LARGEST_CONFIG = 1 << 20
_LARGEST_RANK = 1024
_FLOATS = ("F32", "F16", "BF16")
_UNKNOWN_PEFT = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
)


@dataclass(frozen=True, slots=True)
class _Format:
    """How a tool stores an adapter: the weights' file and the names of its tensors.

    A name holds the layer's path, and which half of the product it is.
    """

    weights_file: str
    tensor_name: re.Pattern[str]
    is_transposed: bool  # `[rank, in]` and `[out, rank]` instead of the other way round


_MLX_LM = _Format(
    weights_file="adapters.safetensors",
    tensor_name=re.compile(r"(.+)\.(lora_[ab])"),
    is_transposed=False,
)
_PEFT = _Format(
    weights_file="adapter_model.safetensors",
    tensor_name=re.compile(
        r"base_model\.model\.(.+)\.(lora_[AB])(?:\.default)?\.weight"
    ),
    is_transposed=True,
)


@dataclass(frozen=True, slots=True)
class _Half:
    """One of a layer's two tensors, as the product takes it: `[in, rank]` or `[rank, out]`."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one layer: `scale * x @ a @ b`.

    `a` is `[in, rank]`, `b` is `[rank, out]`. With a `group` each of its processes has
    some of the inputs, and `x @ a` is summed over all of them.
    """

    a: mx.array
    b: mx.array
    scale: float
    group: mx.distributed.Group | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A named adapter; `layers` by the path of the linear layer that each is for.

    The fingerprint is that of its content.
    """

    name: str
    layers: Mapping[str, LowRank]
    fingerprint: str

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        total = 0
        for part in self.layers.values():
            total += part.a.nbytes + part.b.nbytes
        return total


def read_adapters(named: Iterable[tuple[str, str]], module: nn.Module) -> list[Adapter]:
    """The adapters of these names in these folders. Raises as `read_adapter` does."""
    adapters = []
    for name, folder in named:
        adapters.append(read_adapter(name, expanded(folder), module))
    return adapters


def read_adapter(name: str, folder: Path, module: nn.Module) -> Adapter:
    """The adapter in a folder, for a model with the layers of `module`.

    `module` is never evaluated. Raises `ModelNotFoundError`, `ModelFileError` for damaged
    or foreign weights, and `UnsupportedModelError`.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"adapter {name!r}: {folder} is no folder; give one with {_CONFIG}"
        )
    config = _read_config(folder / _CONFIG)
    if "peft_type" in config:
        form = _PEFT
        scale = _peft_scale(folder, config)
        rank = config["r"]
    else:
        form = _MLX_LM
        scale = _mlx_lm_scale(folder, config)
        rank = config["lora_parameters"].get("rank")
    path = folder / form.weights_file
    check_safetensors(path)
    header, _ = read_header(path)
    pairs = _pairs(path, header, form)
    sizes = _linear_sizes(module)
    for layer, (down, up) in pairs.items():
        a = _half(header[down], form)
        b = _half(header[up], form)
        stored_rank = _checked_rank(path, layer, (a, b), sizes)
        if rank is not None and stored_rank != rank:
            raise ModelFileError(
                f"{path}: the weights for {layer} have rank {stored_rank}, and "
                f"{_CONFIG} says {rank!r:.40}"
            )
    layers = _load_layers(path, pairs, scale, form)
    content = path.read_bytes() + json.dumps(scale).encode()
    return Adapter(name, layers, hashlib.sha256(content).hexdigest())


def _half(row: StoredTensor, form: _Format) -> _Half:
    if form.is_transposed:
        return _Half(row.dtype, row.shape[::-1])
    return _Half(row.dtype, row.shape)


def _load_layers(
    path: Path,
    pairs: Mapping[str, tuple[str, str]],
    scale: float,
    form: _Format,
) -> dict[str, LowRank]:
    """Every layer's weights. Raises `ModelFileError` for values that are not finite."""
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    layers = {}
    for layer, (down, up) in pairs.items():
        a = loaded[down]
        b = loaded[up]
        if form.is_transposed:
            a = a.T
            b = b.T
        if not _is_finite(a) or not _is_finite(b):
            raise ModelFileError(
                f"{path}: the weights for {layer} hold values that are not finite; "
                "train it again"
            )
        layers[layer] = LowRank(a, b, scale)
    return layers


def _is_finite(value: mx.array) -> bool:
    not_finite = mx.isnan(value) | mx.isinf(value)
    return not mx.any(not_finite).item()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _LARGEST_CONFIG:
            raise ModelFileError(
                f"{path}: a configuration of {size} bytes is not plausible"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{path} does not exist; an adapter's folder has one beside its weights"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return value


def _mlx_lm_scale(folder: Path, config: Mapping[str, Any]) -> float:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise UnsupportedModelError(
            f"{folder}: fine_tune_type {kind!r:.40} is not supported, only 'lora'; "
            "fuse it"
        )
    scale = None
    parameters = config.get("lora_parameters")
    if isinstance(parameters, Mapping):
        scale = parameters.get("scale")
    return _number(folder, "lora_parameters.scale", scale)


def _peft_scale(folder: Path, config: Mapping[str, Any]) -> float:
    if config["peft_type"] != "LORA":
        raise UnsupportedModelError(
            f"{folder}: peft_type {config['peft_type']!r:.40} is not supported, only "
            "'LORA'"
        )
    for key in _UNKNOWN_PEFT:
        if config.get(key):
            raise UnsupportedModelError(
                f"{folder}: the adapter uses {key}, which is not supported; merge it "
                "instead"
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"{folder}: the adapter trains biases ({config['bias']!r:.40}), which is "
            "not supported"
        )
    alpha = _number(folder, "lora_alpha", config.get("lora_alpha"))
    rank = config.get("r")
    if type(rank) is not int or not 0 < rank <= _LARGEST_RANK:
        raise ModelFileError(
            f"{folder}: r must be an integer from 1 to {_LARGEST_RANK}, not "
            f"{rank!r:.40}"
        )
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank)
    return alpha / rank


def _number(folder: Path, key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e6:
        raise ModelFileError(
            f"{folder / _CONFIG}: {key} must be a number, not {value!r:.40}"
        )
    return float(value)


def _pairs(
    path: Path,
    names: Iterable[str],
    form: _Format,
) -> dict[str, tuple[str, str]]:
    """The two tensors of each layer, by the layer's path.

    The first goes down to the rank, the second goes up again.
    """
    halves: dict[str, dict[str, str]] = {}
    for name in names:
        match = form.tensor_name.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"{path}: tensor {name!r:.120} is not one of a LoRA adapter of linear "
                "layers"
            )
        layer, half = match.groups()
        halves.setdefault(layer, {})[half.lower()] = name
    if not halves:
        raise ModelFileError(f"{path}: the adapter is empty")
    pairs = {}
    for layer, parts in halves.items():
        if len(parts) != 2:
            raise ModelFileError(
                f"{path}: of {layer} there is only {next(iter(parts))}; both halves "
                "are needed"
            )
        pairs[layer] = (parts["lora_a"], parts["lora_b"])
    return pairs


def _checked_rank(
    path: Path,
    layer: str,
    halves: tuple[_Half, _Half],
    sizes: Mapping[str, tuple[int, int]],
) -> int:
    """The rank of a layer's weights, which fit the model's layer of this path."""
    if layer not in sizes:
        raise ModelFileError(
            f"{path}: {layer!r:.120} is no linear layer of this model; the adapter is "
            "for another one"
        )
    for half in halves:
        if half.dtype not in _FLOATS:
            raise ModelFileError(
                f"{path}: the weights for {layer} have type {half.dtype}; "
                f"{', '.join(_FLOATS)} are known"
            )
    a, b = (half.shape for half in halves)
    inputs, outputs = sizes[layer]
    rank = 0
    if len(a) == 2:
        rank = a[1]
    has_shapes = a == (inputs, rank) and b == (rank, outputs)
    if not 0 < rank <= _LARGEST_RANK or not has_shapes:
        raise ModelFileError(
            f"{path}: the weights for {layer} are {list(a)} and {list(b)}, and the "
            f"layer takes [{inputs}, rank] and [rank, {outputs}] with a rank up to "
            f"{_LARGEST_RANK}"
        )
    return rank


def _linear_sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer by its path."""
    sizes = {}
    for path, layer in module.named_modules():
        if type(layer) is nn.Linear:
            outputs, inputs = layer.weight.shape
            sizes[path] = (inputs, outputs)
        elif type(layer) is nn.QuantizedLinear:
            outputs, packed = layer.weight.shape
            sizes[path] = (packed * 32 // layer.bits, outputs)
    return sizes
