"""What this machine has: memory for the device that MLX uses."""

from __future__ import annotations

import os
import re

import mlx.core as mx

_FIRST_WITH_BFLOAT16 = 15  # generation of the M3's GPU


def is_on_cpu() -> bool:
    """Whether the default device is the CPU, on which all weights are float32."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def device_memory() -> int:
    """Bytes that the default device may use: Metal's recommended working set, a GPU's memory, or physical RAM."""
    if not is_on_cpu():
        info = mx.device_info()
        for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            if value := info.get(key):
                return int(value)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_generation() -> int | None:
    """Of an Apple GPU: 13 is the M1's, 14 the M2's, 15 the M3's; None elsewhere."""
    return _generation_of(str(mx.device_info().get("architecture", "")))


def prefers_float16() -> bool:
    """Whether this GPU has no instructions for bfloat16, as on an M1 or M2."""
    generation = gpu_generation()
    return generation is not None and generation < _FIRST_WITH_BFLOAT16


def _generation_of(architecture: str) -> int | None:
    """From names like applegpu_g13s."""
    match = re.fullmatch(r"applegpu_g(\d+)[a-z]*", architecture)
    return int(match[1]) if match is not None else None
