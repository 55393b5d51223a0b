"""From files on disk to a model in memory: configuration, checks, weights.

On a CPU every weight becomes float32 (MLX multiplies half-precision and quantized matrices about 1000 times too
slowly there); elsewhere weights keep their format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.config import expanded
from rvllm_local.errors import ModelFileError, ModelNotFoundError
from rvllm_local.models.bundle import bundle_weights, is_bundle, open_bundle
from rvllm_local.models.bundle_format import MANIFEST, WEIGHTS
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.config_check import check_end
from rvllm_local.models.families import build_model
from rvllm_local.models.file_stamps import StampedFiles
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import (
    check_shapes,
    gguf_packed_weights,
    gguf_weights,
)
from rvllm_local.models.hub_fetch import Wanted, fetch_repository, parse_repository
from rvllm_local.models.leases import take_lease
from rvllm_local.models.quantized import quantize_as_packed, quantize_as_stored
from rvllm_local.models.safetensors_check import weight_files
from rvllm_local.models.to_float32 import widen_to_float32
from rvllm_local.models.wheel_fetch import Progress, fetch, silent

_DEFAULT_CONTEXT = 2048
_LARGEST_SETTINGS = 16 << 20
_LONGEST_NAME = 1024  # what some systems take for a path


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: a folder of safetensors, one GGUF file, or a bundle's directory."""

    kind: Literal["folder", "gguf", "bundle"]
    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A module with its weights in the format that they are stored in."""

    module: nn.Module
    config: dict[str, Any]
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `weights_bytes` is what its parameters take in memory."""

    module: nn.Module
    config: Mapping[str, Any]
    name: str
    model_type: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    weights_bytes: int
    fingerprint: str


def locate(name: str, progress: Progress = silent) -> ModelFiles:
    """Files for a local folder, a .gguf path, or a catalogue name, which is fetched if need be.

    Raises `ModelNotFoundError` (with the nearest names), `DownloadError` or `ChecksumError`.
    """
    if (local := local_model(name)) is not None:
        return local
    if (wanted := repository_of(name)) is not None:
        return _fetched(name, fetch_repository(wanted, progress))
    return ModelFiles("gguf", fetch(Catalogue.load().resolve(name), progress), name)


def local_model(name: str) -> ModelFiles | None:
    """Files for a path. Raises `ModelNotFoundError` for what can only be a path and leads to no model."""
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise ModelNotFoundError(
            f"{name[:80]!r} is the name of no model, folder or file"
        )
    path = expanded(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # too long for this system, or behind a folder that is closed to this user
        raise ModelNotFoundError(
            f"{name[:80]!r} cannot be looked at: {error.strerror}"
        ) from error
    if is_folder:
        shown = (
            path.name if path.name not in ("", "..") else path.resolve().name
        )  # "." has no name of its own
        if is_bundle(path):
            return ModelFiles("bundle", path, shown.removesuffix(".rvllm"))
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{path} is not a model folder: it has no config.json"
            )
        return ModelFiles("folder", path, shown)
    if path.suffix == ".gguf" and is_file:
        return ModelFiles("gguf", path, path.stem)
    if is_file:
        raise ModelNotFoundError(
            f"{path} is neither a .gguf file nor a folder; give the folder that a model's files are in"
        )
    if (
        (path.suffix == ".gguf" and parse_repository(name) is None)
        or path.is_absolute()
        or name.startswith((".", "~"))
    ):
        raise ModelNotFoundError(
            f"{path} does not exist; give a model folder, a .gguf file or a catalogue name"
        )
    return None


def repository_of(name: str) -> Wanted | None:
    """Where the hub has a model that is named so; None for one of the catalogue that lies in a wheel.

    Raises `ModelNotFoundError` with the nearest names.
    """
    catalogue = Catalogue.load()
    wanted = parse_repository(name)
    if wanted is not None and name.lower() not in catalogue.entries:
        return wanted
    entry = catalogue.resolve(name)
    return None if entry.repo is None else wanted_of(entry)


def wanted_of(entry: CatalogueEntry) -> Wanted:
    """Where the hub has a catalogue's model; a revision of "main" is kept without its name."""
    assert entry.repo is not None
    return Wanted(
        entry.repo, None if entry.revision in (None, "main") else entry.revision
    )


def _fetched(name: str, path: Path) -> ModelFiles:
    kind: Literal["folder", "gguf", "bundle"] = (
        "gguf" if path.suffix == ".gguf" else "folder"
    )
    return ModelFiles(
        "bundle" if kind == "folder" and is_bundle(path) else kind, path, name
    )


def load_model(files: ModelFiles, *, verify: bool = False) -> LoadedModel:
    """Build the model and load its weights; `verify` holds a bundle's weights against their checksum again.

    Raises `ModelFileError` for damaged files and `UnsupportedModelError` for what cannot be served.
    """
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    stamped = StampedFiles(weight_paths(files))
    native = open_native(files, as_floats=on_cpu, verify=verify)
    module, config = native.module, native.config
    if on_cpu:
        widen_to_float32(module)
    module.eval()
    mx.eval(module.parameters())
    fingerprint = _fingerprint(files, config)
    if verify or not stamped.is_known(f"only numbers, {fingerprint}"):
        _check_numbers(files.path, module)
        stamped.note(f"only numbers, {fingerprint}")
    loaded = LoadedModel(
        module=module,
        config=config,
        name=files.name,
        model_type=str(config["model_type"]),
        context_length=context_length(config),
        vocab_size=vocab_size(config),
        eos_token_ids=native.eos_token_ids,
        weights_bytes=sum(
            value.nbytes for _, value in tree_flatten(module.parameters())
        ),
        fingerprint=fingerprint,
    )
    module._lease = take_lease(files.name, files.path)  # lives as long as the module
    return loaded


def open_native(
    files: ModelFiles, *, as_floats: bool = False, verify: bool = False
) -> NativeModel:
    """The model with its weights as they are stored, read only when they are evaluated where the format allows.

    With `as_floats` a GGUF file's quantized matrices become float32. Raises as `load_model` does.
    """
    if files.kind == "gguf":
        gguf = GGUFFile(files.path)
        config = gguf_config(gguf)
        module = build_model(config)
        check_shapes(
            gguf,
            {name: value.shape for name, value in tree_flatten(module.parameters())},
        )
        parts = (
            gguf_weights(gguf, config)
            if as_floats
            else gguf_packed_weights(gguf, config)
        )
        weights = {name: mx.array(part) for name, part in parts}
        weights = _sanitized(files.path, module, weights)
        quantize_as_packed(module, weights)
        _load_weights(files.path, module, weights)
        return NativeModel(module, config, _ids(config.get("eos_token_id")))
    if files.kind == "bundle":
        open_bundle(files.path, verify=verify)
    config = read_config(files.path)
    module = build_model(config)
    weights = (
        bundle_weights(files.path)
        if files.kind == "bundle"
        else _folder_weights(files.path)
    )
    weights = _sanitized(files.path, module, weights)
    quantize_as_stored(module, config, weights)
    _load_weights(files.path, module, weights)
    return NativeModel(module, config, _folder_eos(files.path, config))


def _check_numbers(path: Path, module: nn.Module) -> None:
    """Refuse weights that are not finite numbers: one of them would turn every answer into noise."""
    for name, value in tree_flatten(module.parameters()):
        if (
            mx.issubdtype(value.dtype, mx.floating)
            and not mx.isfinite(value).all().item()
        ):
            what = "not numbers (NaN)" if mx.isnan(value).any().item() else "infinite"
            raise ModelFileError(
                f"{path}: weight {name!r} holds values that are {what}; fetch it again"
            )


def _folder_weights(folder: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for path in weight_files(folder):
        shard = _read_safetensors(path)
        if twice := weights.keys() & shard.keys():
            raise ModelFileError(
                f"{path}: weight {min(twice)!r} is also in another file"
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


def _sanitized(
    path: Path, module: nn.Module, weights: dict[str, mx.array]
) -> dict[str, mx.array]:
    """The weights as the family's own clean-up leaves them."""
    if not hasattr(module, "sanitize"):
        return weights
    try:
        return dict(module.sanitize(weights))
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ModelFileError(
            f"{path}: the weights are not those of this architecture: {error!r:.300}"
        ) from error


def _load_weights(path: Path, module: nn.Module, weights: dict[str, mx.array]) -> None:
    for name, expected in tree_flatten(module.parameters()):
        if name in weights and not _is_of_type(weights[name].dtype, expected.dtype):
            raise ModelFileError(
                f"{path}: weight {name!r} is of type {_name(weights[name].dtype)}, and the model takes {_name(expected.dtype)}"
            )
    try:
        module.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelFileError(
            f"{path}: the weights do not fit the configuration: {detail}"
        ) from error


def _is_of_type(given: mx.Dtype, expected: mx.Dtype) -> bool:
    """True for any width of floats where floats are expected; packed weights must be of exactly their type."""
    if mx.issubdtype(expected, mx.floating):
        return bool(mx.issubdtype(given, mx.floating))
    return given == expected or not mx.issubdtype(expected, mx.unsignedinteger)


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _folder_eos(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: the generation settings' if given, else the configuration's."""
    generation = folder / "generation_config.json"
    if generation.is_file():
        given = _read_json(generation)
        check_end(given.get("eos_token_id"), str(generation))
        if ids := _ids(given.get("eos_token_id")):
            return ids
    return _ids(config.get("eos_token_id")) or _ids(
        _text_config(config).get("eos_token_id")
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal configuration, or nothing."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else {}


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(
        token
        for token in values
        if isinstance(token, int) and not isinstance(token, bool)
    )


def context_length(config: Mapping[str, Any]) -> int:
    """The model's own context in tokens. Raises `ModelFileError` for a value that is none."""
    key = "max_position_embeddings"
    value = next(
        (
            part[key]
            for part in (config, _text_config(config))
            if part.get(key) is not None
        ),
        _DEFAULT_CONTEXT,
    )
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFileError(f"config.json has no usable {key}: {value!r}")
    return value


def vocab_size(config: Mapping[str, Any]) -> int:
    """Rows of the logits. Raises `ModelFileError` for a value that is none."""
    value = config.get("vocab_size") or _text_config(config).get("vocab_size")
    if not isinstance(value, int) or value < 1:
        raise ModelFileError(f"config.json has no usable vocab_size: {value!r}")
    return value


def weight_paths(files: ModelFiles) -> list[Path]:
    """The files that hold a model's weights, whatever is in them."""
    if files.kind == "gguf":
        return [files.path]
    return (
        [files.path / WEIGHTS]
        if files.kind == "bundle"
        else sorted(files.path.glob("*.safetensors"))
    )


def _fingerprint(files: ModelFiles, config: Mapping[str, Any]) -> str:
    """Changes whenever the configuration or a weight file's size or time does."""
    if files.kind == "bundle":
        return hashlib.sha256((files.path / MANIFEST).read_bytes()).hexdigest()
    stamps = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in weight_paths(files)
    ]
    return hashlib.sha256(
        json.dumps([config, stamps], sort_keys=True, default=str).encode()
    ).hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's configuration. Raises `ModelFileError`."""
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_SETTINGS:
            raise ModelFileError(
                f"{path}: {path.stat().st_size} bytes of settings are not plausible"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return value
