"""Which model answers where nobody names one: the best that is installed here.

Nothing is fetched for that. Without another model that fits, the small one answers.
"""

from __future__ import annotations

import asyncio
import logging

from rvllm_local.config import DEFAULT_MODEL, Config
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.store import installed_names

WORD = "default"  # stands for the chosen model, in the API as well
logger = logging.getLogger(__name__)


def default_model(config: Config) -> str:
    """The configured model, or the best of the installed ones for this machine."""
    name = decided_model(config)
    if name is not None:
        return name
    name = asyncio.run(_best_installed(config))
    if name is None:
        return DEFAULT_MODEL
    logger.info("%s is the best installed model for this machine", name)
    return name


def decided_model(config: Config) -> str | None:
    """The model, if that needs no measurement of this machine; else None.

    A server that is started without a model measures and decides.
    """
    if config.names_model and config.model != WORD:
        return config.model
    return None if _has_others(config) else DEFAULT_MODEL


def _has_others(config: Config) -> bool:
    """Whether a model of the catalogue is installed beside the small one."""
    names = installed_names(config.cache_dir) - {DEFAULT_MODEL}
    return any(name in names for name in Catalogue.load().entries)


async def _best_installed(config: Config) -> str | None:
    """The largest installed model that fits and is fast enough to read along."""
    from rvllm_local.tui.first_start import best_model, measure_bandwidth
    from rvllm_local.tui.offers import catalogue_models

    bandwidth = await measure_bandwidth()
    if bandwidth is None:
        return None
    offers = catalogue_models((), config.cache_dir)
    best = best_model([info for info in offers if info.installed], 0, bandwidth)
    return None if best is None else best.info.id
