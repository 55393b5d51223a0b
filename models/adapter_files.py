"""Reads LoRA adapters from folders, in mlx-lm's format and PEFT's, and holds them against the model they are for.

Everything is checked before a model's weights are read: names, shapes, ranks, numbers. Knows nothing of how adapters
are computed.
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
from rvllm_local.models.safetensors_check import check_safetensors, read_header
from rvllm_local.option import expanded

_CONFIG, _MLX_LM, _PEFT = (
    "adapter_config.json",
    "adapters.safetensors",
    "adapter_model.safetensors",
)
_LARGEST_CONFIG = 1 << 20
_LARGEST_RANK = 1024
_FLOATS = ("F32", "F16", "BF16")
_MLX_NAME = re.compile(r"(.+)\.(lora_[ab])")
_PEFT_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])(?:\.default)?\.weight")
_UNKNOWN_PEFT = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one layer: `scale * x @ a @ b`, with `a` [in, rank] and `b` [rank, out]."""

    a: mx.array
    b: mx.array
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A named adapter; `layers` by the path of the linear layer that each is for. The fingerprint is its content's."""

    name: str
    layers: Mapping[str, LowRank]
    fingerprint: str

    @property
    def nbytes(self) -> int:
        return sum(part.a.nbytes + part.b.nbytes for part in self.layers.values())


def read_adapters(named: Iterable[tuple[str, str]], module: nn.Module) -> list[Adapter]:
    """The adapters of these names in these folders. Raises as `read_adapter` does."""
    return [read_adapter(name, expanded(folder), module) for name, folder in named]


def read_adapter(name: str, folder: Path, module: nn.Module) -> Adapter:
    """The adapter in a folder, for a model of which `module` shows the layers; that is never evaluated.

    Raises `ModelNotFoundError`, `ModelFileError` for damaged or foreign weights, and `UnsupportedModelError`.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"adapter {name!r}: {folder} is no folder; give one with {_CONFIG}"
        )
    config = _read_config(folder / _CONFIG)
    if "peft_type" in config:
        path, scale, rank = folder / _PEFT, _peft_scale(folder, config), config["r"]
    else:
        path, scale, rank = (
            folder / _MLX_LM,
            _mlx_lm_scale(folder, config),
            config["lora_parameters"].get("rank"),
        )
    check_safetensors(path)
    rows = {
        tensor: (row.dtype, row.shape) for tensor, row in read_header(path)[0].items()
    }
    pairs = _pairs(path, rows, is_peft="peft_type" in config)
    sizes = _linear_sizes(module)
    for layer, (down, up) in pairs.items():
        _check_layer(
            path, layer, rows[down], rows[up], sizes, is_peft="peft_type" in config
        )
        found = rows[down][1][0 if "peft_type" in config else 1]
        if rank is not None and found != rank:
            raise ModelFileError(
                f"{path}: the weights for {layer} have rank {found}, and {_CONFIG} says {rank!r:.40}"
            )
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    layers = {}
    for layer, (down, up) in pairs.items():
        a, b = (
            (loaded[down].T, loaded[up].T)
            if "peft_type" in config
            else (loaded[down], loaded[up])
        )
        if (
            mx.any(mx.isnan(a) | mx.isinf(a)).item()
            or mx.any(mx.isnan(b) | mx.isinf(b)).item()
        ):
            raise ModelFileError(
                f"{path}: the weights for {layer} hold values that are not finite; train it again"
            )
        layers[layer] = LowRank(a, b, scale)
    content = hashlib.sha256(path.read_bytes() + json.dumps(scale).encode()).hexdigest()
    return Adapter(name, layers, content)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ModelFileError(
                f"{path}: a configuration of {path.stat().st_size} bytes is not plausible"
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
            f"{folder}: fine_tune_type {kind!r:.40} is not supported, only 'lora'; fuse it"
        )
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    return _number(folder, "lora_parameters.scale", scale)


def _peft_scale(folder: Path, config: Mapping[str, Any]) -> float:
    if config["peft_type"] != "LORA":
        raise UnsupportedModelError(
            f"{folder}: peft_type {config['peft_type']!r:.40} is not supported, only 'LORA'"
        )
    if used := [key for key in _UNKNOWN_PEFT if config.get(key)]:
        raise UnsupportedModelError(
            f"{folder}: the adapter uses {used[0]}, which is not supported; merge it instead"
        )
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"{folder}: the adapter trains biases ({config['bias']!r:.40}), which is not supported"
        )
    alpha, rank = (
        _number(folder, "lora_alpha", config.get("lora_alpha")),
        config.get("r"),
    )
    if type(rank) is not int or not 0 < rank <= _LARGEST_RANK:
        raise ModelFileError(
            f"{folder}: r must be an integer from 1 to {_LARGEST_RANK}, not {rank!r:.40}"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(folder: Path, key: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < 1e6
    ):
        raise ModelFileError(
            f"{folder / _CONFIG}: {key} must be a number, not {value!r:.40}"
        )
    return float(value)


def _pairs(
    path: Path, names: Mapping[str, object], *, is_peft: bool
) -> dict[str, tuple[str, str]]:
    """The tensors of each layer by its path: the one that goes down to the rank, and the one that goes up again."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = (_PEFT_NAME if is_peft else _MLX_NAME).fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"{path}: tensor {name!r:.120} is not one of a LoRA adapter of linear layers"
            )
        found.setdefault(match[1], {})[match[2].lower()] = name
    if not found:
        raise ModelFileError(f"{path}: the adapter is empty")
    for layer, parts in found.items():
        if len(parts) != 2:
            raise ModelFileError(
                f"{path}: of {layer} there is only {next(iter(parts))}; both halves are needed"
            )
    return {layer: (parts["lora_a"], parts["lora_b"]) for layer, parts in found.items()}


def _check_layer(
    path: Path,
    layer: str,
    down: tuple[str, tuple[int, ...]],
    up: tuple[str, tuple[int, ...]],
    sizes: Mapping[str, tuple[int, int]],
    *,
    is_peft: bool,
) -> None:
    if layer not in sizes:
        raise ModelFileError(
            f"{path}: {layer!r:.120} is no linear layer of this model; the adapter is for another one"
        )
    for dtype, _ in (down, up):
        if dtype not in _FLOATS:
            raise ModelFileError(
                f"{path}: the weights for {layer} have type {dtype}; {', '.join(_FLOATS)} are known"
            )
    (a, b) = (down[1][::-1], up[1][::-1]) if is_peft else (down[1], up[1])
    inputs, outputs = sizes[layer]
    rank = a[1] if len(a) == 2 else 0
    if not 0 < rank <= _LARGEST_RANK or a != (inputs, rank) or b != (rank, outputs):
        raise ModelFileError(
            f"{path}: the weights for {layer} are {list(a)} and {list(b)}, and the layer takes "
            f"[{inputs}, rank] and [rank, {outputs}] with a rank up to {_LARGEST_RANK}"
        )


def _linear_sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer by its path."""
    found = {}
    for path, layer in module.named_modules():
        if type(layer) is nn.Linear:
            outputs, inputs = layer.weight.shape
            found[path] = (inputs, outputs)
        elif type(layer) is nn.QuantizedLinear:
            outputs, packed = layer.weight.shape
            found[path] = (packed * 32 // layer.bits, outputs)
    return found
