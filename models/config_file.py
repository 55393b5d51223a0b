"""Reads a model folder's settings, and what every layer asks of a configuration.

Knows the files' names and their largest size. It builds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_local.errors import ModelFileError
from rvllm_local.models.config_check import check_end
from rvllm_local.models.older_settings import quantization_beside
from rvllm_local.models.stand_in import refuse_stand_in

GENERATION = "generation_config.json"
_DEFAULT_CONTEXT = 2048
_LARGEST_SETTINGS = 16 << 20


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's configuration. Raises `ModelFileError`.

    It says how weights are packed, whichever file the writer has for that.
    """
    config = read_settings(folder / "config.json")
    beside = quantization_beside(folder, config, read_settings)
    if beside:
        config["quantization_config"] = beside
    return config


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file of settings. Raises `ModelFileError`."""
    refuse_stand_in(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST_SETTINGS:
            raise ModelFileError(f"{path}: {size} bytes of settings are not plausible")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return value


def generation_settings(folder: Path) -> dict[str, Any] | None:
    """What a folder recommends for answers; None for a file that is no JSON.

    Such files are published, and the model is sound without them. Raises
    `ModelFileError` for a file that cannot be read for another reason.
    """
    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        return read_settings(path)
    except ModelFileError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return None
        raise


def end_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer, from all settings that name one.

    The generation settings' come first. Raises `ModelFileError` for an end that is no
    token of the vocabulary, with both sources.
    """
    sources: dict[str, Mapping[str, Any]] = {}
    generation = generation_settings(folder)
    if generation:
        sources[GENERATION] = generation
    sources["config.json"] = config
    sources["config.json's text_config"] = text_config(config)
    rows = None
    if _stated_vocabulary(config):
        rows = vocab_size(config)
    ends: dict[int, None] = {}  # in the order of the sources
    for source, settings in sources.items():
        value = settings.get("eos_token_id")
        check_end(value, f"{folder}: {source}")
        for token in token_ids(value):
            if token < 0:
                continue  # older writers say -1 for none
            if rows is not None and token >= rows:
                raise ModelFileError(
                    f"{folder}: {source} has eos_token_id {token}, which is no token: "
                    f"config.json's vocab_size is {rows}"
                )
            ends[token] = None
    return tuple(ends)


def _stated_vocabulary(config: Mapping[str, Any]) -> Any:
    """What the configuration says of its vocabulary's size, of whatever type."""
    value = config.get("vocab_size")
    if value:
        return value
    return text_config(config).get("vocab_size")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal configuration, or nothing."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return text
    return {}


def token_ids(value: Any) -> tuple[int, ...]:
    """The token ids in a value that is an id, a list of them, or anything else."""
    values = value
    if not isinstance(value, list):
        values = [value]
    ids = []
    for token in values:
        if isinstance(token, int) and not isinstance(token, bool):
            ids.append(token)
    return tuple(ids)


def context_length(config: Mapping[str, Any]) -> int:
    """The model's own context in tokens.

    Raises `ModelFileError` for a value that is none.
    """
    key = "max_position_embeddings"
    value = config.get(key)
    if value is None:
        value = text_config(config).get(key)
    if value is None:
        value = _DEFAULT_CONTEXT
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFileError(f"config.json has no usable {key}: {value!r}")
    return value


def vocab_size(config: Mapping[str, Any]) -> int:
    """Rows of the logits. Raises `ModelFileError` for a value that is none."""
    value = _stated_vocabulary(config)
    if not isinstance(value, int) or value < 1:
        raise ModelFileError(f"config.json has no usable vocab_size: {value!r}")
    return value
