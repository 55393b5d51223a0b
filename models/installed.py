"""Which models are on this machine, whole and ready to load, by the names that load them."""

from __future__ import annotations

import dataclasses

from rvllm_local.errors import RvllmError
from rvllm_local.models.loader import ModelFiles, locate
from rvllm_local.models.store import Installed, installed


def installed_models() -> dict[str, ModelFiles]:
    """The store's models by each of their names. Nothing is read but names, and one that is unsound is left out."""
    found: dict[str, ModelFiles] = {}
    for model in installed():
        try:
            files = files_of(model)
        except RvllmError:
            continue
        found |= {name: dataclasses.replace(files, name=name) for name in model.names}
    return found


def files_of(model: Installed) -> ModelFiles:
    """What loads an installed model. Raises `ModelNotFoundError` if it has gone."""
    ggufs = sorted(model.path.glob("*.gguf"))
    return locate(str(ggufs[0] if model.kind == "gguf" else model.path))
