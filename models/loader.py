"""From a model's files to a model in memory: configuration, checks, weights.

On a CPU every weight becomes float32, since MLX multiplies half-precision and quantized
matrices about 1000 times too slowly there; or quantized weights stay as they are stored,
for `models.cpu` to pack. Elsewhere weights keep their format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.models.bundle import bundle_weights, open_bundle
from rvllm_local.models.bundle_format import MANIFEST
from rvllm_local.models.config_file import (
    context_length,
    end_tokens,
    read_config,
    text_config,
    token_ids,
    vocab_size,
)
from rvllm_local.models.cpu.stored import has_stored, keep_stored, packed_bytes
from rvllm_local.models.families import build_model
from rvllm_local.models.file_stamps import StampedFiles
from rvllm_local.models.gguf.architectures import architecture_of
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.joined import joined_weights
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import (
    check_shapes,
    gguf_packed_weights,
    gguf_weights,
)
from rvllm_local.models.heads import with_head_of
from rvllm_local.models.leases import take_lease
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.longrope import with_factors_for
from rvllm_local.models.quantized import (
    as_mlx_stores,
    quantize_as_packed,
    quantize_as_stored,
)
from rvllm_local.models.sharding import divide, parameter_bytes
from rvllm_local.models.spare_weights import without_spare
from rvllm_local.models.stages import take_stage
from rvllm_local.models.to_float32 import widen_to_float32
from rvllm_local.models.weights import (
    check_finite,
    folder_weights,
    put_weights,
    sanitized,
)


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A module with its weights in the format that they are stored in."""

    module: nn.Module
    config: dict[str, Any]
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `weights_bytes` is what its parameters take in memory.

    With `packs` its quantized layers are stand-ins that wait to be packed; `notes` says
    which of them are in float32, and why. `head` predicts tokens further ahead, if that
    was asked for.
    """

    module: nn.Module
    config: Mapping[str, Any]
    name: str
    model_type: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    weights_bytes: int
    fingerprint: str
    packs: bool = False
    notes: tuple[str, ...] = ()
    head: LoadedModel | None = None


def load_model(
    files: ModelFiles,
    *,
    verify: bool = False,
    packs: bool = False,
    context: int | None = None,
    group: mx.distributed.Group | None = None,
    pipeline: bool = False,
) -> LoadedModel:
    """Build the model and load its weights.

    `context` is the longest text that it is for, in tokens; None is the model's own.
    `verify` holds a bundle's weights against their checksum again. With `packs` a CPU
    keeps quantized layers as they are stored. With a `group` only this rank's part is
    read and stays; with `pipeline` that is some of the layers. Raises `ModelFileError`
    for damaged files and `UnsupportedModelError` for what cannot be served.
    """
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    stamped = StampedFiles(files.weight_paths(), files.cache_dir)
    if packs and files.kind == "gguf":
        native = _open_gguf(files.path, True, np.float32, context)
    else:
        native = open_native(files, as_floats=on_cpu, verify=verify, context=context)
    module = native.module
    config = native.config
    if group is not None:
        _take_part(module, config, group, pipeline)
    notes: tuple[str, ...] = ()
    if packs:
        notes = keep_stored(module)
    elif on_cpu:
        widen_to_float32(module)
    module.eval()
    _read_parameters(module)
    if group is not None:
        mx.clear_cache()  # whole tensors, of which a part was taken
    fingerprint = _fingerprint(files, config)
    fact = f"only numbers, {fingerprint}{_part_in_words(group, pipeline)}"
    if verify or not stamped.is_known(fact):
        check_finite(files.path, module)
        stamped.note(fact)
    weights_bytes = parameter_bytes(module)
    if packs:
        weights_bytes = packed_bytes(module)
        fingerprint += "|packed"  # its KV is not that of float32 arithmetic
    # The lease lives as long as the module.
    module._lease = take_lease(files.name, files.path, files.cache_dir)
    return LoadedModel(
        module=module,
        config=config,
        name=files.name,
        model_type=str(config["model_type"]),
        context_length=context_length(config),
        vocab_size=_vocab_size(module, config),
        eos_token_ids=native.eos_token_ids,
        weights_bytes=weights_bytes,
        fingerprint=fingerprint,
        packs=packs and has_stored(module),
        notes=notes,
    )


def _take_part(
    module: nn.Module,
    config: dict[str, Any],
    group: mx.distributed.Group,
    pipeline: bool,
) -> None:
    """Leave a module this rank's layers, or its part of each."""
    if pipeline:
        ranks = group.size()
        rank = group.rank()
        take_stage(module, config, ranks, rank)
    else:
        divide(module, config, group)


def _read_parameters(module: nn.Module) -> None:
    """One after the other: of a tensor that is cut only the part is kept."""
    for _, parameter in tree_flatten(module.parameters()):
        mx.eval(parameter)


def _part_in_words(group: mx.distributed.Group | None, pipeline: bool) -> str:
    if group is None:
        return ""
    kind = "stage" if pipeline else "rank"
    return f", {kind} {group.rank()} of {group.size()}"


def open_native(
    files: ModelFiles,
    *,
    as_floats: bool = False,
    verify: bool = False,
    context: int | None = None,
) -> NativeModel:
    """The model with its weights as they are stored.

    Weights are read only when they are evaluated, where the format allows. With
    `as_floats` a GGUF file's quantized matrices become float32. Raises as `load_model`
    does.
    """
    if files.kind == "gguf":
        return _open_gguf(files.path, not as_floats, context=context)
    if files.kind == "bundle":
        open_bundle(files.path, verify=verify, cache_dir=files.cache_dir)
    config = with_factors_for(read_config(files.path), context)
    if files.kind == "bundle":
        weights = bundle_weights(files.path)
    else:
        weights = folder_weights(files.path)
    weights = as_mlx_stores(config, weights, as_floats=as_floats)
    config = with_head_of(config, weights)
    module = build_model(config)
    weights = sanitized(files.path, module, weights)
    weights = without_spare(module, config, weights)
    quantize_as_stored(module, config, weights)
    put_weights(files.path, module, weights)
    return NativeModel(module, config, end_tokens(files.path, config))


def _open_gguf(
    path: Path,
    is_packed: bool,
    floats: npt.DTypeLike = np.float16,
    context: int | None = None,
) -> NativeModel:
    """With `is_packed` quantized matrices stay so, and all else is `floats`."""
    gguf = GGUFFile(path)
    config = with_factors_for(gguf_config(gguf), context)
    module = build_model(config)
    shapes = {name: value.shape for name, value in tree_flatten(module.parameters())}
    check_shapes(gguf, shapes)
    if is_packed:
        parts = gguf_packed_weights(gguf, config, floats)
    else:
        parts = gguf_weights(gguf, config)
    weights = {name: mx.array(part) for name, part in parts}
    weights = joined_weights(architecture_of(gguf), weights)
    weights = sanitized(path, module, weights)
    quantize_as_packed(module, weights)
    put_weights(path, module, weights)
    return NativeModel(module, config, token_ids(config.get("eos_token_id")))


def _vocab_size(module: nn.Module, config: Mapping[str, Any]) -> int:
    """Rows of the logits; some configurations leave them to the definition."""
    stated = config.get("vocab_size") or text_config(config).get("vocab_size")
    arguments = getattr(module, "args", None)
    of_definition = getattr(arguments, "vocab_size", None)
    if stated is None and isinstance(of_definition, int) and of_definition > 0:
        return of_definition
    return vocab_size(config)


def _fingerprint(files: ModelFiles, config: Mapping[str, Any]) -> str:
    """Changes whenever the configuration or a weight file's size or time does."""
    if files.kind == "bundle":
        manifest = (files.path / MANIFEST).read_bytes()
        return hashlib.sha256(manifest).hexdigest()
    stamps = []
    for path in files.weight_paths():
        state = path.stat()
        stamps.append((path.name, state.st_size, state.st_mtime_ns))
    text = json.dumps([config, stamps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
