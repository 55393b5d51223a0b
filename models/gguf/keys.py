"""Checked look-ups of a GGUF file's keys."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.reader import GGUFFile

# Keys that change what is computed, with the values that change nothing.
_NOT_COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "embedding_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "router_logit_softcapping": (0,),
}

_MOST = 1 << 24  # more than any size is
_SIGMOID = 2  # how llama.cpp calls the scores of experts that are no softmax


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

    def refuse_what_is_not_computed(self, scales: Collection[str]) -> None:
        """Raise `UnsupportedModelError` for a key that changes numbers and is not read.

        A key of 0 changes nothing. The family reads `scales` itself.
        """
        for key, neutral in _NOT_COMPUTED.items():
            value = None if key in scales else self.get(key)
            if value is not None and value not in neutral:
                raise UnsupportedModelError(
                    f"{self.path}: key {self._prefix + key!r} is {value!r:.40}, which "
                    "is not supported in a GGUF file; use safetensors"
                )

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, list) and value:
            # A value for each layer: it counts if all are the same.
            first = value[0]
            differs = [each for each in value if each != first]
            if differs:
                raise UnsupportedModelError(
                    f"{self.path}: key {self._prefix + key!r} is {value!r:.60}: layers "
                    "that differ are not supported in a GGUF file; use safetensors"
                )
            value = first
        if type(value) is not int or not 0 < value < _MOST:
            raise ModelFileError(
                f"{self.path}: key {self._prefix + key!r} is {value!r:.60}, not a plausible number"
            )
        return value

    def largest(self, key: str, default: int | None = None) -> int:
        """A number that may differ from layer to layer: the largest one."""
        value = self.get(key)
        if not isinstance(value, list):
            return self.integer(key, default)
        largest = 0
        for number in value:
            if type(number) is int:
                largest = max(largest, number)
        if not 0 < largest < _MOST:
            return self.integer(key, default)
        return largest

    def whole(self, key: str, default: int) -> int:
        """A number that may be 0."""
        if self._or(key, default) == 0:
            return 0
        return self.integer(key, default)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ModelFileError(
                f"{self.path}: key {self._prefix + key!r} is {value!r:.60}, not a positive number"
            )
        return float(value)

    def factor(self, key: str, default: float) -> float:
        """What something is multiplied by; 0 is none."""
        if not self.get(key):
            return default
        return self.positive(key)

    def require_sigmoid(self, *same: int | None) -> None:
        """Raise `UnsupportedModelError` for experts that are not chosen by sigmoid.

        The family takes a value of `same` for sigmoid, too.
        """
        gating = self.get("expert_gating_func")
        if gating not in (*same, _SIGMOID):
            raise UnsupportedModelError(
                f"{self.path}: key 'expert_gating_func' is {gating!r:.40}, and only sigmoid "
                f"({_SIGMOID}) is supported"
            )

    def _value(self, key: str, default: float | None) -> Any:
        if default is None:
            return self._required(key)
        return self._or(key, default)

    def _or(self, key: str, default: float) -> Any:
        value = self.get(key)
        if value is None:
            return default
        return value

    def _required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelFileError(f"{self.path}: key {self._prefix + key!r} is missing")
        return value
