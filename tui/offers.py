"""What the catalogue offers beside the models that a server has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rvllm_local.machine import device_memory, is_on_cpu
from rvllm_local.memory.plan import default_reserve
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.store import installed_names
from rvllm_local.tui.first_start import LEAST_BESIDE
from rvllm_local.tui.state import ModelInfo


def catalogue_models(
    served: Collection[str], cache_dir: Path | None = None
) -> tuple[ModelInfo, ...]:
    """The catalogue's models but those served: what is here, what fits, the rest.

    "Here" is the cache folder that is given, or else the default one.
    """
    room = _room()
    entries = Catalogue.load().entries.values()
    here = installed_names(cache_dir)
    infos = [_info(entry, room, here) for entry in entries if entry.name not in served]
    return tuple(sorted(infos, key=_rank))


def _info(entry: CatalogueEntry, room: int, here: Collection[str]) -> ModelInfo:
    on_cpu = is_on_cpu()
    needed = entry.weight_bytes(is_on_cpu=on_cpu) + LEAST_BESIDE
    return ModelInfo(
        entry.name,
        served=False,
        installed=entry.name in here,
        size=entry.size,
        fits=needed <= room,
        needed=needed,
        room=room,
        read=entry.read_bytes(is_on_cpu=on_cpu),
        parameters=entry.parameters,
        license=entry.license,
        abilities=_abilities(entry),
    )


def image_model() -> ModelInfo | None:
    """The smallest model with a name here that was made to see images and fits."""
    room = _room()
    smallest: ModelInfo | None = None
    for entry in Catalogue.load().entries.values():
        if not entry.images:
            continue
        info = _info(entry, room, installed_names())
        if info.fits and (smallest is None or entry.size < (smallest.size or 0)):
            smallest = info
    return smallest


def _room() -> int:
    """Bytes that models may take on this machine."""
    memory = device_memory()
    return memory - default_reserve(memory)


def _abilities(entry: CatalogueEntry) -> tuple[str, ...]:
    abilities = []
    if entry.tools:
        abilities.append("tools")
    if entry.reasoning:
        abilities.append("thinks")
    return tuple(abilities)


def _rank(info: ModelInfo) -> tuple[bool, bool, int]:
    """Installed first, then what fits with the largest first, then what does not."""
    return not info.installed, not info.fits, -(info.size or 0)
