"""Settings of packed weights that older writers keep in files of their own.

Newer ones write them into config.json, as `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_Settings = dict[str, Any]
_OWN = ("quantization", "quantization_config")


def quantization_beside(
    folder: Path, config: Mapping[str, Any], read: Callable[[Path], _Settings]
) -> _Settings | None:
    """The `quantization_config` that other words or files of the folder stand for.

    `read` gives the object in a file. None where config.json names the packing itself,
    and where nothing does.
    """
    text = config.get("text_config")
    if _names_packing(config) or _names_packing(text):
        return None
    sparse = config.get("compression_config")  # compressed-tensors' older word
    if isinstance(sparse, dict) and sparse:
        return sparse
    for name, translate in _TRANSLATED.items():
        path = folder / name
        if path.is_file():
            return translate(read(path))
    return None


def _names_packing(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return any(part.get(key) for key in _OWN)


def stated_names(
    folder: Path, config: Mapping[str, Any], read: Callable[[Path], _Settings]
) -> list[str]:
    """Weight files, less their suffix, that settings of packers lead to: best first."""
    settings = quantization_beside(folder, config, read)
    if settings is None:
        return []
    names = []
    base = settings.get("model_file_base_name")
    if isinstance(base, str):
        names.append(base)
    method = settings.get("quant_method")
    if method == "gptq":
        bits = settings.get("bits")
        size = settings.get("group_size")
        usual = f"gptq_model-{bits}bit-{size}g"
        names.append(usual)
    elif method == "awq":
        bits = settings.get("w_bit")
        size = settings.get("q_group_size")
        usual = f"awq_model_w{bits}_g{size}"
        names.append(usual)
    return names


def _gptq(settings: Mapping[str, Any]) -> _Settings:
    if "w_bit" in settings:
        return _awq(settings)
    translated = {"quant_method": "gptq"}
    translated.update(settings)
    return translated


def _awq(settings: Mapping[str, Any]) -> _Settings:
    translated = {"quant_method": "awq"}
    translated.update(settings)
    return translated


def _modelopt(settings: Mapping[str, Any]) -> _Settings | None:
    """None for a model of which only the KV cache is meant to be packed."""
    stated = settings.get("quantization")
    translated = {"quant_method": "modelopt"}
    if not isinstance(stated, Mapping):
        return translated
    if stated.get("quant_algo") is None:
        return None
    translated.update(stated)
    return translated


_TRANSLATED: Mapping[str, Callable[[Mapping[str, Any]], _Settings | None]] = {
    "quantize_config.json": _gptq,
    "quant_config.json": _awq,
    "hf_quant_config.json": _modelopt,
}
OLDER_SETTINGS = tuple(_TRANSLATED)
