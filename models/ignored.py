"""What of a model's files is not used, in words: so that nobody wonders.

Nothing here refuses a model, and nothing is read but settings and names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rvllm_local.errors import ModelFileError
from rvllm_local.models.architecture import import_family
from rvllm_local.models.config_file import (
    GENERATION,
    generation_settings,
    read_settings,
    text_config,
)
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.other_quantizations import activation_rounding
from rvllm_local.models.quantized import other_tools_config
from rvllm_local.models.safetensors_check import (
    names_in,
    read_header,
    stale_index,
)
from rvllm_local.models.spare_weights import is_for_other_parts
from rvllm_local.models.weight_names import PICKLES
from rvllm_local.models.windows import layer_windows

_SLIDING = "sliding_attention"


def ignored_parts(files: ModelFiles, config: Mapping[str, Any]) -> list[str]:
    """What is ignored, each with its reason."""
    parts = []
    if files.kind == "folder":
        parts += _of_folder(files.path, config)
    other = other_tools_config(config)
    if isinstance(other, Mapping):
        rounding = activation_rounding(other)
        if rounding is not None:
            parts.append(f"{rounding}: activations are not rounded here")
    window = _unused_window(config)
    if window is not None:
        parts.append(
            f"sliding_window {window}: mlx-lm's definition attends to the whole context"
        )
    return parts


def _of_folder(folder: Path, config: Mapping[str, Any]) -> list[str]:
    parts = []
    if config.get("auto_map"):
        parts.append("auto_map in config.json: the architecture is defined here")
    tokenizer_settings = folder / "tokenizer_config.json"
    if tokenizer_settings.is_file() and read_settings(tokenizer_settings).get(
        "auto_map"
    ):
        parts.append("auto_map in tokenizer_config.json: code of a model never runs")
    if generation_settings(folder) is None:
        parts.append(f"{GENERATION}: it is no JSON")
    index = stale_index(folder)
    if index is not None:
        parts.append(f"{index}: it names files or weights that are not here")
    parts += _spare_weights(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            parts.append(f"{path.name}: code of a model never runs")
        elif path.suffix in PICKLES:
            parts.append(f"{path.name}: pickled files are never read")
    return parts


def _spare_weights(folder: Path) -> list[str]:
    """Weights of other parts than the language model, counted.

    A file that cannot be read has none; loading it says what is wrong.
    """
    count = 0
    example = ""
    for file in names_in(folder).files:
        names: Iterable[str] = ()
        with contextlib.suppress(ModelFileError, OSError):
            names = read_header(folder / file)[0]
        for name in names:
            if is_for_other_parts(name):
                count += 1
                example = example or name
    if not count:
        return []
    return [
        f"{count} weights such as {example}: they are of other parts than the text's"
    ]


def _unused_window(config: Mapping[str, Any]) -> int | None:
    """A window that the configuration asks for and the definition does not know."""
    settings = {**text_config(config), **config}
    window, layer_types = settings.get("sliding_window"), settings.get("layer_types")
    if type(window) is not int or settings.get("use_sliding_window") is False:
        return None
    if isinstance(layer_types, list) and _SLIDING not in layer_types:
        return None
    if layer_windows(settings):
        return None
    arguments = import_family(str(config.get("model_type"))).ModelArgs
    if not is_dataclass(arguments):
        return None
    names = {field.name for field in fields(arguments)}
    is_known = "sliding_window" in names or "text_config" in names
    return None if is_known else window
