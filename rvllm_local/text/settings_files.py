"""Reads the JSON files beside a tokenizer; one that is missing is empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rvllm_local.errors import ModelFileError
from rvllm_local.models.stand_in import refuse_stand_in


def read_settings_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelFileError` for what is none."""
    if not path.is_file():
        return {}
    refuse_stand_in(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object")
    return value
