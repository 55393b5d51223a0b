"""What shapes an engine; crosses to the engine's process, so it knows nothing of MLX."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.config import EngineConfig


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What shapes an engine. `kv_memory` is bytes for all arenas; `context_length` may shorten the model's own.

    `cache` is "off", "memory" or "disk"; `kv_dtype` "auto" (the model's own) or "int8". `step_target_s` bounds a step
    that also prefills; None chooses by device. More than `max_rows + max_waiting` open choices are refused at once.
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
    adapters: tuple[tuple[str, str], ...] = ()  # LoRA adapters: a name and a folder each

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
