"""Checks a safetensors header before MLX reads the file: MLX accepts duplicate names and overlapping tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from rvllm_local.errors import ModelFileError


def check_safetensors(path: Path) -> None:
    """Raise `ModelFileError` if the file is missing, cut, or its header contradicts itself."""
    if not path.is_file():
        raise ModelFileError(f"{path}: this weight file is missing; fetch the model again")
    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a sound safetensors file: {error}; fetch it again") from error
