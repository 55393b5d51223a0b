"""Checked look-ups of a GGUF file's keys."""

from __future__ import annotations

import math
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.reader import GGUFFile


class Keys:
    """Checked look-ups of an architecture's own keys."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.path = file, file.path
        self._prefix = f"{file.metadata['general.architecture']}."

    def get(self, key: str) -> Any:
        return self.file.metadata.get(self._prefix + key)

    def refuse_experts(self) -> None:
        if self.get("expert_count"):
            raise UnsupportedModelError(
                f"{self.path}: experts in a GGUF file are not supported; use safetensors"
            )

    def refuse_parts(self) -> None:
        parts = self.file.metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModelError(
                f"{self.path}: it is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`"
            )

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._required(key) if default is None else self._or(key, default)
        if isinstance(value, list) and value:
            # A value for each layer: it counts if all are the same.
            first = value[0]
            if all(each == first for each in value):
                value = first
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not 0 < value < 1 << 24
        ):
            raise ModelFileError(
                f"{self.path}: key {self._prefix + key!r} is {value!r:.60}, not a plausible number"
            )
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._required(key) if default is None else self._or(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise ModelFileError(
                f"{self.path}: key {self._prefix + key!r} is {value!r:.60}, not a positive number"
            )
        return float(value)

    def _or(self, key: str, default: float) -> Any:
        value = self.get(key)
        return default if value is None else value

    def _required(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ModelFileError(f"{self.path}: key {self._prefix + key!r} is missing")
        return value
