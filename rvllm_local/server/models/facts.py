"""What is told of a model that is not loaded: from its headers and settings alone.

Reads files: not for the event loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
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
    if files.kind == "gguf":
        gguf = GGUFFile(files.path)
        config = gguf_config(gguf)
        template = templates_of_gguf(gguf.metadata, files.path).default
        parameters, quantization = _of_gguf(gguf)
    else:
        config = read_config(files.path)
        tokenizer = read_settings_file(files.path / "tokenizer_config.json")
        template = templates_of_folder(files.path, tokenizer).default
        parameters, quantization = _of_folder(files, config)
    entry = entry_of(files)
    license_name = ""
    if entry is not None:
        license_name = entry.license
    style = detect(template, str(config.get("model_type")))
    thinks = style.reasoning_start is not None
    if style.tool_family == "harmony":
        thinks = True
    size = 0
    modified = 0.0
    for path in files.weight_paths():
        stat = path.stat()
        size += stat.st_size
        modified = max(modified, stat.st_mtime)
    setup = pooled_setup(files)
    kind = "safetensors"
    if files.kind == "gguf":
        kind = "gguf"
    return ModelFacts(
        kind=kind,
        architecture=str(config.get("model_type") or "unknown"),
        quantization=quantization,
        parameters=parameters,
        size=size,
        modified=modified,
        digest=_digest(files.weight_paths()),
        context_length=context_length(config),
        settings=_numbers({**config, **text_config(config)}),
        chat_template=template,
        license=license_name,
        # A model that knows none is told how.
        calls_tools=template is not None and setup is None,
        thinks=thinks,
        pools="" if setup is None else setup.kind,
    )


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
