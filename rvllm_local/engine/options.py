"""What shapes an engine; crosses to the engine's process, so it knows nothing of MLX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    cache_dir: Path | None = None
    kv_dtype: str = "auto"
    deterministic: bool = False
    step_target_s: float | None = None
    max_waiting: int = 256
