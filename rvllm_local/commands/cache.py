"""`rvllm cache`: what the disk cache holds by model and age, and `rvllm cache clear`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rvllm_local.config import load_config
from rvllm_local.errors import ParameterError
from rvllm_local.memory.block_scan import store_folder
from rvllm_local.memory.cache_contents import CachedModel, cached_models, clear_cache

_DAY = 24 * 3600.0
_AGES = (("today", _DAY), ("this week", 7 * _DAY), ("older", float("inf")))


def cache(arguments: argparse.Namespace) -> int:
    """Print the disk cache's contents, or clear it."""
    config = load_config()
    folder = store_folder(config.cache_dir)
    if arguments.action == "clear":
        return _clear(folder, arguments.models)
    rows = [_row(model, time.time()) for model in cached_models(folder)]
    if arguments.json:
        sys.stdout.write(json.dumps({"folder": str(folder), "models": rows}))
        sys.stdout.write("\n")
        return 0
    total = sum(row["size"] for row in rows)
    sys.stdout.write(
        f"{folder}: {_gigabytes(total)} of at most "
        f"{_gigabytes(config.options.disk_cache_bytes)}\n"
    )
    _print_rows(rows)
    return 0


def _row(model: CachedModel, now: float) -> dict[str, Any]:
    """A model's bytes, and those of its files by the time of their last use."""
    ages = dict.fromkeys((name for name, _ in _AGES), 0)
    for file in model.files:
        age = now - file.last_use
        for name, most in _AGES:
            if age < most:
                ages[name] += file.size
                break
    return {
        "name": _shown_name(model),
        "size": model.size,
        "files": len(model.files),
        "last_use": model.last_use,
        "last_used": ages,
    }


def _shown_name(model: CachedModel) -> str:
    return model.name or model.folder.name


def _print_rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    width = max(len(row["name"]) for row in rows) + 2
    titles = ["all", *(name for name, _ in _AGES)]
    heads = "".join(f"{title:>12}" for title in titles)
    sys.stdout.write(f"{'last used':<{width}}{heads}\n")
    for row in rows:
        sizes = [row["size"], *row["last_used"].values()]
        cells = "".join(f"{_gigabytes(size):>12}" for size in sizes)
        sys.stdout.write(f"{row['name']:<{width}}{cells}\n")


def _clear(folder: Path, names: list[str]) -> int:
    """Remove the named models' blocks, or all. Raises `ParameterError`."""
    cached_names = {_shown_name(model) for model in cached_models(folder)}
    for name in names:
        if name not in cached_names:
            raise ParameterError(
                "model",
                f"the disk cache holds nothing of {name!r:.80}; "
                "`rvllm cache` lists what it holds",
            )
    cleared = clear_cache(
        folder, lambda model: not names or _shown_name(model) in names
    )
    size = sum(model.size for model in cleared)
    sys.stderr.write(f"rvllm: removed {_gigabytes(size)} from {folder}\n")
    return 0


def _gigabytes(size: int) -> str:
    if size < 10**9:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.2f} GB"
