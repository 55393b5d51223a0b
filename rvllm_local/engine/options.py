"""What shapes an engine; crosses to the engine's process, so it knows nothing of MLX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rvllm_local.config import EngineConfig
from rvllm_local.errors import ConfigError

_CHOICES = {
    "attention": ("auto", "kernels", "reference"),
    "cache": ("off", "memory", "disk"),
    "kv_dtype": ("auto", "int8"),
}
_LEAST = {"max_rows": 1, "prefill_chunk": 1, "disk_cache_bytes": 1, "max_waiting": 0}
_LEAST_IF_GIVEN = {"kv_memory": 1, "context_length": 1, "system_reserve": 0}
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What shapes an engine. `kv_memory` is bytes for all arenas; `context_length` may shorten the model's own.

    `cache` is "off", "memory" or "disk"; `kv_dtype` "auto" (the model's own) or "int8". `step_target_s` bounds a step
    that also prefills; None chooses by device. More than `max_rows + max_waiting` open choices are refused at once.
    Raises `ConfigError` for a value that cannot be.
    """

    kv_memory: int | None = None
    max_rows: int = 16
    prefill_chunk: int = 512
    context_length: int | None = None
    self_check: bool = True
    attention: str = "auto"  # "auto", "kernels" or "reference"
    cache: str = "memory"
    disk_cache_bytes: int = 8 * 10**9
    cache_dir: str | None = None
    kv_dtype: str = "auto"
    deterministic: bool = False
    step_target_s: float | None = None
    max_waiting: int = 256
    system_reserve: int | None = None
    adapters: tuple[
        tuple[str, str], ...
    ] = ()  # LoRA adapters: a name and a folder each

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(
                    f"{name} cannot be {value!r:.80}: it must be {', '.join(allowed[:-1])} or {allowed[-1]}"
                )
        for name, least in (_LEAST | _LEAST_IF_GIVEN).items():
            value = getattr(self, name)
            if not (value is None and name in _LEAST_IF_GIVEN) and not _is_whole(
                value, least
            ):
                raise ConfigError(
                    f"{name} cannot be {value!r:.80}: it must be a whole number of at least {least}"
                )
        for name in ("self_check", "deterministic"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(
                    f"{name} cannot be {value!r:.80}: it must be True or False"
                )
        target = self.step_target_s
        if target is not None and not (
            isinstance(target, int | float) and 0 < target < math.inf
        ):
            raise ConfigError(
                f"step_target_s cannot be {target!r:.80}: it must be a time in seconds, above 0"
            )
        names = [name for name, _ in self.adapters]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"adapters has two of the name {twice[0]!r:.80}; give each another one"
            )

    @classmethod
    def from_config(cls, config: EngineConfig) -> EngineOptions:
        """The options that a merged configuration asks for."""
        target = config.step_target_ms
        return cls(
            kv_memory=config.kv_memory,
            max_rows=config.max_rows,
            prefill_chunk=config.prefill_chunk,
            context_length=config.context_length,
            self_check=config.self_check,
            attention=config.attention,
            cache=config.cache,
            disk_cache_bytes=config.disk_cache_bytes,
            cache_dir=str(config.cache_dir),
            kv_dtype=config.kv_dtype,
            deterministic=config.deterministic,
            step_target_s=None if target is None else target / 1000,
            max_waiting=config.max_waiting,
            system_reserve=config.system_reserve,
        )


def _is_whole(value: Any, least: int) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value <= _LARGEST
    )
