"""Decides what `cache = "auto"` means for a server: the disk, where it has room."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from msgspec import structs

from rvllm_local.config import Config
from rvllm_local.memory.block_scan import store_folder
from rvllm_local.memory.cache_contents import cached_models
from rvllm_local.options import Cache

logger = logging.getLogger(__name__)


def with_server_cache(config: Config) -> Config:
    """The configuration with "auto" resolved, and a line that says what was chosen.

    The disk is taken if the cache leaves it at least as much as the cache may take.
    """
    if config.options.cache != "auto":
        return config
    if config.options.ranks > 1:  # each would have to keep its part of each prefix
        return _with_cache(config, "memory")
    folder = store_folder(config.cache_dir)
    held = sum(model.size for model in cached_models(folder))
    budget = config.options.disk_cache_bytes
    choice: Cache = "disk" if _free_bytes(folder) + held >= 2 * budget else "memory"
    if choice == "disk":
        logger.info(
            "prefixes outlive a restart in %s: %.1f of at most %.1f GB; "
            "`rvllm cache` shows them, `rvllm cache clear` removes them, "
            "--cache memory keeps none",
            folder,
            held / 1e9,
            budget / 1e9,
        )
    else:
        logger.info(
            "prefixes are kept in memory only: less than %.1f GB are free for %s; "
            "--cache disk with a smaller --disk-cache-bytes keeps them on disk",
            2 * budget / 1e9,
            folder,
        )
    return _with_cache(config, choice)


def _with_cache(config: Config, choice: Cache) -> Config:
    options = structs.replace(config.options, cache=choice)
    return structs.replace(config, options=options)


def _free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of the folder; 0 if nobody can tell."""
    for parent in (folder, *folder.parents):
        if parent.is_dir():
            try:
                return shutil.disk_usage(parent).free
            except OSError:
                return 0
    return 0
