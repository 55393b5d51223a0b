"""`rvllm recommend`: the best model with a name here for this machine, and what fits beside it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from rvllm_local import host
from rvllm_local.config import load_config
from rvllm_local.tui.first_start import best_model, expected_speed, measure_bandwidth
from rvllm_local.tui.offers import catalogue_models
from rvllm_local.tui.state import ModelInfo

_SHOWN = 8


def recommend(arguments: argparse.Namespace) -> int:
    """Print the largest model that fits and is fast enough to read along.

    Exit status 1 if there is none.
    """
    host.prepare()
    offers = catalogue_models((), load_config().cache_dir)
    bandwidth = asyncio.run(measure_bandwidth())
    best = None
    if bandwidth is not None:
        best = best_model(offers, 0, bandwidth)
    rows = [_row(info, bandwidth) for info in offers if info.fits]
    name = None if best is None else best.info.id
    if arguments.json:
        sys.stdout.write(json.dumps({"best": name, "models": rows}) + "\n")
    else:
        _print(name, rows)
    return 0 if name is not None else 1


def _row(info: ModelInfo, bandwidth: float | None) -> dict[str, Any]:
    """A model that fits. Its speed is arithmetic: each token reads all weights once."""
    speed = None
    if bandwidth is not None:
        speed = expected_speed(info, bandwidth)
    return {
        "name": info.id,
        "size": info.size,
        "needed": info.needed,
        "room": info.room,
        "tokens_per_s": speed,
        "license": info.license,
        "abilities": list(info.abilities),
        "installed": info.installed,
    }


def _print(name: str | None, rows: list[dict[str, Any]]) -> None:
    if name is None:
        sys.stdout.write("no model with a name here fits and is fast enough\n")
    for row in sorted(rows, key=lambda row: -(row["size"] or 0))[:_SHOWN]:
        mark = "*" if row["name"] == name else " "
        size = f"{(row['size'] or 0) / 1e9:.1f} GB"
        speed = ""
        if row["tokens_per_s"] is not None:
            speed = f"{row['tokens_per_s']:.0f} tok/s"
        sys.stdout.write(
            f"{mark} {row['name']:<24}{size:>9}{speed:>11}  {row['license']}\n"
        )
    if name is not None:
        sys.stdout.write(f"\nrvllm pull {name}; rvllm chat {name}\n")
