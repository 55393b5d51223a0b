"""What this machine has: memory for the device that MLX uses."""

from __future__ import annotations

import os

import mlx.core as mx


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
