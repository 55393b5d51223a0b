"""Settings of packed weights that older writers keep in files of their own.

Newer ones write them into config.json, as `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_Settings = dict[str, Any]


def quantization_beside(
    folder: Path, read: Callable[[Path], _Settings]
) -> _Settings | None:
    """The `quantization_config` that other files of the folder stand for.

    `read` gives the object in a file. None where there is no such file.
    """
    for name, translate in _TRANSLATED.items():
        path = folder / name
        if path.is_file():
            return translate(read(path))
    return None


def _gptq(settings: Mapping[str, Any]) -> _Settings:
    translated = {"quant_method": "gptq"}
    translated.update(settings)
    return translated


def _awq(settings: Mapping[str, Any]) -> _Settings:
    translated = {"quant_method": "awq"}
    translated.update(settings)
    return translated


def _modelopt(settings: Mapping[str, Any]) -> _Settings:
    stated = settings.get("quantization")
    translated = {"quant_method": "modelopt"}
    if isinstance(stated, Mapping):
        translated.update(stated)
    return translated


_TRANSLATED: Mapping[str, Callable[[Mapping[str, Any]], _Settings]] = {
    "quantize_config.json": _gptq,
    "quant_config.json": _awq,
    "hf_quant_config.json": _modelopt,
}
OLDER_SETTINGS = tuple(_TRANSLATED)
