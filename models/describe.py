"""What a model will take, from its configuration and the sizes of its files.

The module that is built here shows the shapes of its KV. Its weights are never
computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.models.bundle_format import WEIGHTS
from rvllm_local.models.config_file import (
    context_length,
    read_config,
    vocab_size,
)
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.head_counts import stated_heads, stated_size
from rvllm_local.models.hub_fetch import fetch_configuration, find_repository
from rvllm_local.models.locate import ModelFiles, local_model, locate, repository_of
from rvllm_local.models.progress import Progress
from rvllm_local.models.quantized import narrowest_bits, widens
from rvllm_local.models.repository import Repository
from rvllm_local.models.safetensors_check import names_in
from rvllm_local.models.shapes import shaped_entry
from rvllm_local.models.sharding import parameter_bytes
from rvllm_local.scratch import temporary_folder

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_USUAL_WIDTH = 4096  # of a model that does not state its hidden size
# The most that packed weights take over stored ones. A product keeps copies of its own of
# scales and sums; a table that is the head as well is kept twice, to be looked up and to
# be multiplied. Codes of fewer than 4 bits are widened: GGUF's Q3_K takes 3.5 times.
_PACKED = 3
_PACKED_NARROW = 4


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model's sizes. Look at `module`'s shapes, and never evaluate its weights.

    `weights_bytes` is what loading takes in memory. `packed_bytes` is what a CPU takes
    that keeps quantized weights quantized; None where there are none, or no CPU.
    """

    module: nn.Module
    name: str
    context_length: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    weights_bytes: int
    packed_bytes: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def outlined(
    name: str, progress: Progress, *, cache_dir: Path | None = None
) -> Iterator[ModelDescription]:
    """The description of a model.

    Of one that would have to be fetched from the hub, the layers may stand in the
    catalogue; otherwise only its configuration is fetched. Raises as `locate` and
    `describe` do.
    """
    repository = _remote_folder(name, cache_dir)
    if repository is None:
        files = locate(name, progress, cache_dir=cache_dir)
        yield describe(files)
        return
    shaped = shaped_entry(name)
    if shaped is not None:
        entry, config = shaped
        progress(f"{name} is not on this machine; its layers stand in the catalogue")
        bits = narrowest_bits(config)
        yield describe_config(config, name, entry.size, bits=bits)
        return
    progress(f"{name} is not on this machine; asking for its configuration alone")
    with temporary_folder() as folder:
        stored = fetch_configuration(repository, Path(folder))
        yield describe(ModelFiles("folder", Path(folder), name), stored)


def _remote_folder(name: str, cache_dir: Path | None) -> Repository | None:
    """The repository of a folder of weights that is not here; None for all else."""
    if local_model(name) is not None:
        return None
    repository = repository_of(name)
    if repository is None or repository.gguf:
        return None
    if find_repository(repository, cache_dir) is not None:
        return None
    return repository


def describe(files: ModelFiles, stored: int | None = None) -> ModelDescription:
    """What the files tell; `stored` is the bytes of weights that are not there yet.

    Raises `ModelFileError` and `UnsupportedModelError` for a bad configuration, as
    loading does.
    """
    if files.kind == "gguf":
        gguf = GGUFFile(files.path)
        config = gguf_config(gguf)
        bits = _gguf_bits(gguf)
    else:
        config = read_config(files.path)
        bits = narrowest_bits(config)
    if stored is None:
        stored = _stored_bytes(files)
    return describe_config(config, files.name, stored, bits=bits)


def describe_config(
    config: Mapping[str, Any], name: str, stored: int, *, bits: int | None
) -> ModelDescription:
    """What a configuration tells of weights that take `stored` bytes on disk.

    bits: the fewest of a weight that is quantized; None where none is.
    """
    module = outline(config)
    weights_bytes = stored
    if widens(config):
        weights_bytes = parameter_bytes(module)
    packed_bytes = None
    if mx.default_device() == mx.Device(mx.cpu):
        weights_bytes = 4 * _parameter_count(module)  # all are float32 there
        if bits is not None:
            packed_bytes = _packed_bytes(module, stored, bits)
    return ModelDescription(
        module=module,
        name=name,
        context_length=context_length(config),
        vocab_size=vocab_size(config),
        hidden_size=widest(config, "hidden_size"),
        intermediate_size=widest(config, "intermediate_size"),
        num_heads=num_heads(config),
        weights_bytes=weights_bytes,
        packed_bytes=packed_bytes,
        config=config,
    )


def outline(config: Mapping[str, Any]) -> nn.Module:
    """A model of the shapes and types that loading makes; its weights mean nothing."""
    module = build_model(config)
    if mx.default_device() != mx.Device(mx.cpu):
        dtype_name = str(config.get("torch_dtype") or config.get("dtype"))
        module.set_dtype(_DTYPES.get(dtype_name, mx.bfloat16))
    return module


def _gguf_bits(gguf: GGUFFile) -> int | None:
    """The fewest bits of a weight in blocks, without its block's scale."""
    fewest = None
    for info in gguf.tensors.values():
        blocks = info.format
        if blocks.elements > 1:
            bits = 8 * blocks.size // blocks.elements
            fewest = bits if fewest is None else min(fewest, bits)
    return fewest


def _packed_bytes(module: nn.Module, stored: int, bits: int) -> int:
    """The most that a CPU takes for weights of `stored` bytes, the narrowest of `bits`.

    Stacked experts are float32 there.
    """
    whole = _parameter_count(module)
    experts = 0
    for part in module.modules():
        if type(part).__name__ == "SwitchLinear":
            experts += _parameter_count(part)
    rest = stored * (whole - experts) // whole
    times = _PACKED if bits >= 4 else _PACKED_NARROW
    return min(4 * whole, 4 * experts + times * rest)


def _stored_bytes(files: ModelFiles) -> int:
    """Bytes on disk of the files that hold weights."""
    if files.kind == "gguf":
        return sum(path.stat().st_size for path in files.weight_paths())
    names: Iterable[str] = names_in(files.path).files
    if files.kind == "bundle":
        names = (WEIGHTS,)
    total = 0
    for name in names:
        total += (files.path / name).stat().st_size
    return total


def _parameter_count(module: nn.Module) -> int:
    total = 0
    for _, parameter in tree_flatten(module.parameters()):
        held = 4 if parameter.dtype == mx.uint8 else 1  # ternary weights in a byte
        total += held * parameter.size
    return total


def num_heads(config: Mapping[str, Any]) -> int:
    """Query heads of a layer; where they are not given, heads of 64."""
    return stated_heads(config) or max(1, widest(config, "hidden_size") // 64)


def widest(config: Mapping[str, Any], key: str) -> int:
    """A width of the configuration, or of its text part.

    An MLP's that is not given is 4 times the hidden size.
    """
    width = stated_size(config, key)
    if width:
        return width
    if key == "hidden_size":
        return _USUAL_WIDTH
    return 4 * widest(config, "hidden_size")
