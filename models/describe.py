"""What a model will take, from its headers alone: nothing is read but configuration and file sizes.

The module that is built here has weights that are never computed; it only shows the shapes of its KV.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.models.bundle_format import WEIGHTS
from rvllm_local.models.config_file import context_length, read_config, vocab_size
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.hub_fetch import fetch_configuration, find_repository
from rvllm_local.models.locate import ModelFiles, local_model, locate, repository_of
from rvllm_local.models.progress import Progress
from rvllm_local.models.quantized import is_quantized

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_query_heads")
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


# Packed weights over stored ones: the product's own copies of scales and sums, and a table
# that is the head as well, which is looked up and multiplied.
_PACKED = 3


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """`module` has lazy weights: look at shapes, never evaluate. `weights_bytes` is what loading will take.

    `packed_bytes` is what a CPU takes that keeps quantized weights quantized; None where there are none, or no CPU.
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


@contextlib.contextmanager
def outlined(
    name: str, progress: Progress, *, cache_dir: Path | None = None
) -> Iterator[ModelDescription]:
    """The description of a model.

    Of one that would have to be fetched from the hub, only the configuration is. Raises
    as `locate` and `describe` do.
    """
    is_local = local_model(name) is not None
    repository = None if is_local else repository_of(name)
    is_remote = repository is not None and not repository.gguf
    if repository is None or not is_remote or find_repository(repository, cache_dir):
        yield describe(locate(name, progress, cache_dir=cache_dir))
        return
    progress(f"{name} is not on this machine; asking for its configuration alone")
    with tempfile.TemporaryDirectory() as folder:
        stored = fetch_configuration(repository, Path(folder))
        yield describe(ModelFiles("folder", Path(folder), name), stored)


def describe(files: ModelFiles, stored: int | None = None) -> ModelDescription:
    """What the files tell; `stored` is the bytes of weights that are not there yet.

    Raises `ModelFileError` and `UnsupportedModelError` as loading would for a bad configuration.
    """
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if files.kind == "gguf":
        gguf = GGUFFile(files.path)
        config, paths = gguf_config(gguf), [files.path]
        packs = any(info.format.elements > 1 for info in gguf.tensors.values())
    else:
        config = read_config(files.path)
        packs = is_quantized(config)
        paths = list(
            files.path.glob(WEIGHTS if files.kind == "bundle" else "model*.safetensors")
        )
    if stored is None:
        stored = sum(path.stat().st_size for path in paths)
    module = build_model(config)
    if not on_cpu:
        module.set_dtype(
            _DTYPES.get(
                str(config.get("torch_dtype") or config.get("dtype")), mx.bfloat16
            )
        )
    parameters = sum(value.size for _, value in tree_flatten(module.parameters()))
    return ModelDescription(
        module,
        files.name,
        context_length(config),
        vocab_size(config),
        widest(config, "hidden_size"),
        widest(config, "intermediate_size"),
        num_heads(config),
        4 * parameters if on_cpu else stored,
        min(4 * parameters, _PACKED * stored) if on_cpu and packs else None,
    )


def num_heads(config: Mapping[str, Any]) -> int:
    """Query heads of a layer; where they are not given, heads of 64."""
    return stated_heads(config) or max(1, widest(config, "hidden_size") // 64)


def stated_heads(config: Mapping[str, Any]) -> int | None:
    """The most query heads that a layer has by the configuration; None where it does not say."""
    return next(filter(None, (_stated(config, name) for name in _HEADS)), None)


def widest(config: Mapping[str, Any], key: str) -> int:
    """A width of the configuration, or of its text part; 4 times the hidden size where an MLP's is not given."""
    if found := _stated(config, key):
        return found
    return 4096 if key == "hidden_size" else 4 * widest(config, "hidden_size")


def _stated(config: Mapping[str, Any], key: str) -> int | None:
    """A size of the configuration, or of its text part: the largest where layers differ, None where none is given."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        value = place.get(key)
        if isinstance(value, list):
            value = max((one for one in value if isinstance(one, int)), default=0)
        if isinstance(value, int) and value > 0:
            return value
    return None
