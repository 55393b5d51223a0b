"""Which models are on this machine, whole and ready to load, by the names that load them."""

from __future__ import annotations

from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.hub import cache_folder
from rvllm_local.models.loader import ModelFiles


def installed_models() -> dict[str, ModelFiles]:
    """The catalogue's models that were fetched. Nothing is read but names and sizes."""
    found = {}
    for entry in Catalogue.load().entries.values():
        path = cache_folder() / entry.name / entry.file
        if path.is_file() and path.stat().st_size == entry.size:
            found[entry.name] = ModelFiles("gguf", path, entry.name)
    return found
