"""The JSON of a GPU benchmark: a record whose machine names the GPU, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from rvllm_local.bench.metrics import Figure
from rvllm_local.bench.record import new_record


def save(
    path: Path, kind: str, runs: Mapping[str, Mapping[str, Figure]], **details: Any
) -> None:
    """Write `runs` of this process on this machine."""
    found = new_record(kind, runs, **details)
    gpu = mx.device_info().get("device_name", "a GPU without a name")
    dataclasses.replace(found, machine=f"{gpu}; {found.machine}").save(path)
