"""What is told of a model that is not loaded: from its headers and settings alone.

Reads files: not for the event loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.errors import RvllmError
from rvllm_local.models.config_file import context_length, read_config, text_config
from rvllm_local.models.encoders.setup import pooled_setup
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.safetensors_check import read_header
from rvllm_local.server.models.inspection_frames import ModelFacts
from rvllm_local.text.chat_templates import templates_of_folder, templates_of_gguf
from rvllm_local.text.detect_style import entry_of
from rvllm_local.text.families import detect
from rvllm_local.text.settings_files import read_settings_file

_PACKED = "U32"  # the type of weights that hold several numbers in a word
_WORD = 32
_BESIDE_PACKED = (".scales", ".biases")


def model_facts(files: ModelFiles) -> ModelFacts | None:
    """The facts; None for files that cannot be read."""
    try:
        return _facts(files)
    except (RvllmError, OSError):
        return None


def _facts(files: ModelFiles) -> ModelFacts:
    contents = _contents(files)
    config = contents.config
    entry = entry_of(files)
    license_name = ""
    if entry is not None:
        license_name = entry.license
    size, modified = _size_and_time(files)
    setup = pooled_setup(files)
    pools = ""
    if setup is not None:
        pools = setup.kind
    return ModelFacts(
        kind=contents.kind,
        architecture=str(config.get("model_type") or "unknown"),
        quantization=contents.quantization,
        parameters=contents.parameters,
        size=size,
        modified=modified,
        digest=_digest(files.weight_paths()),
        context_length=context_length(config),
        settings=_numbers({**config, **text_config(config)}),
        chat_template=contents.template,
        license=license_name,
        # A model that knows none is told how.
        calls_tools=contents.template is not None and setup is None,
        thinks=_thinks(contents),
        pools=pools,
    )


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a model's own files say of it."""

    kind: str
    config: Mapping[str, Any]
    template: str | None
    parameters: int
    quantization: str


def _contents(files: ModelFiles) -> _Contents:
    if files.kind == "gguf":
        gguf = GGUFFile(files.path)
        config = gguf_config(gguf)
        template = templates_of_gguf(gguf.metadata, files.path).default
        return _Contents("gguf", config, template, *_of_gguf(gguf))
    config = read_config(files.path)
    tokenizer = read_settings_file(files.path / "tokenizer_config.json")
    template = templates_of_folder(files.path, tokenizer).default
    return _Contents("safetensors", config, template, *_of_folder(files, config))


def _thinks(contents: _Contents) -> bool:
    style = detect(contents.template, str(contents.config.get("model_type")))
    return style.reasoning_start is not None or style.tool_family == "harmony"


def _size_and_time(files: ModelFiles) -> tuple[int, float]:
    """Bytes of all weights, and when the newest of them was changed."""
    size = 0
    modified = 0.0
    for path in files.weight_paths():
        stat = path.stat()
        size += stat.st_size
        modified = max(modified, stat.st_mtime)
    return size, modified


def _numbers(config: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in config.items() if isinstance(value, int)}


def _of_gguf(gguf: GGUFFile) -> tuple[int, str]:
    """The number of parameters, and the format that most bytes are in."""
    sizes: dict[str, int] = {}
    parameters = 0
    for tensor in gguf.tensors.values():
        parameters += math.prod(tensor.shape)
        name = tensor.format.name
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    return parameters, max(sizes, key=lambda name: sizes[name], default="")


def _of_folder(files: ModelFiles, config: Mapping[str, Any]) -> tuple[int, str]:
    plan = config.get("quantization")
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "")
    bits = plan.get("bits") if isinstance(plan, dict) else None
    if not isinstance(bits, int) or bits < 1:
        return _parameters(files, _WORD), dtype
    return _parameters(files, bits), f"{bits}-bit"


def _parameters(files: ModelFiles, bits: int) -> int:
    """Numbers in all tensors; a word of packed weights holds several of `bits`."""
    total = 0
    for path in files.weight_paths():
        if path.suffix != ".safetensors":
            return 0
        for name, tensor in read_header(path)[0].items():
            if tensor.dtype == _PACKED:
                total += math.prod(tensor.shape) * _WORD // bits
            elif bits == _WORD or not name.endswith(_BESIDE_PACKED):
                total += math.prod(tensor.shape)
    return total


def _digest(paths: list[Path]) -> str:
    hashed = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        hashed.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return hashed.hexdigest()
