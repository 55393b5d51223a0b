"""The models on this machine: what is installed, how large it is, and removing it.

Knows the store's folders. Fetching is `wheel_fetch` and `hub_fetch`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.errors import ModelNotFoundError, RvllmError
from rvllm_local.models.bundle_format import is_bundle
from rvllm_local.models.cache_folder import is_left_behind, models_folder
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.hub_fetch import is_being_fetched
from rvllm_local.models.leases import users_of
from rvllm_local.models.locate import ModelFiles, locate, repository_of
from rvllm_local.models.repository import PIN, RECORD, is_gguf_name, read_record

# Catalogue names by repository and revision.
_NamesByRepository = dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Installed:
    """A model in the store.

    `names` are what it answers to, its catalogue name first; `size` is bytes on disk.
    """

    names: tuple[str, ...]
    path: Path
    size: int
    kind: str
    commit: str | None
    pinned: bool


class InUseError(RvllmError):
    """The model is pinned, or a process has it open."""


def installed(cache_dir: Path | None = None) -> list[Installed]:
    """All models in the store, by name; what is only half there is none."""
    root = models_folder(cache_dir)
    if not root.is_dir():
        return []
    catalogue = Catalogue.load()
    names: _NamesByRepository = {}
    for entry in catalogue.entries.values():
        if entry.repo is not None:
            names[entry.repo, entry.revision or "main"] = entry.name
    models = []
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            model = _model_in(folder, catalogue, names)
            if model is not None:
                models.append(model)
    return sorted(models, key=lambda model: model.names[0])


def installed_names(cache_dir: Path | None = None) -> frozenset[str]:
    """Every name that an installed model answers to."""
    models = installed(cache_dir)
    return frozenset(name for model in models for name in model.names)


def _model_in(
    folder: Path, catalogue: Catalogue, names: _NamesByRepository
) -> Installed | None:
    record = read_record(folder)
    if record is not None:
        return _fetched(folder, record, names)
    entry = catalogue.entries.get(folder.name)
    if entry is not None and entry.file and (folder / entry.file).is_file():
        return _installed((entry.name,), folder, "gguf")
    if is_bundle(folder):
        return _installed((folder.name.removesuffix(".rvllm"),), folder, "bundle")
    return None


def _fetched(
    folder: Path, record: dict[str, object], names: _NamesByRepository
) -> Installed:
    """A model that came from the hub."""
    repository = str(record.get("repository"))
    revision = str(record.get("revision"))
    name = repository
    catalogue_name = None
    kind = "safetensors"
    ggufs = gguf_files(folder)
    if ggufs:
        kind = "gguf"
        name += f"/{ggufs[0].relative_to(folder).as_posix()}"
    else:
        catalogue_name = names.get((repository, revision))
        if is_bundle(folder):
            kind = "bundle"
    if revision != "main":
        name += f"@{revision}"
    all_names: tuple[str, ...] = (name,)
    if catalogue_name is not None:
        all_names = (catalogue_name, name)
    commit = None
    if "commit" in record:
        commit = str(record["commit"])
    return _installed(all_names, folder, kind, commit)


def _installed(
    names: tuple[str, ...], folder: Path, kind: str, commit: str | None = None
) -> Installed:
    return Installed(
        names=names,
        path=folder,
        size=folder_size(folder),
        kind=kind,
        commit=commit,
        pinned=(folder / PIN).is_file(),
    )


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files below a model's folder."""
    files = folder.rglob("*")
    return sorted(path for path in files if is_gguf_name(path.name))


def installed_models(cache_dir: Path | None = None) -> dict[str, ModelFiles]:
    """The store's models, whole and ready to load, by each of their names.

    Nothing is read but names. A model that is unsound is left out.
    """
    by_name: dict[str, ModelFiles] = {}
    for model in installed(cache_dir):
        try:
            files = files_of(model, cache_dir)
        except RvllmError:
            continue
        for name in model.names:
            by_name[name] = dataclasses.replace(files, name=name)
    return by_name


def files_of(model: Installed, cache_dir: Path | None = None) -> ModelFiles:
    """What loads an installed model. Raises `ModelNotFoundError` if it has gone."""
    path = model.path
    if model.kind == "gguf":
        ggufs = gguf_files(path)
        if ggufs:
            path = ggufs[0]
    return locate(str(path), cache_dir=cache_dir)


def find_installed(name: str, cache_dir: Path | None = None) -> Installed | None:
    """The installed model that answers to `name`."""
    lowered = name.lower()
    for model in installed(cache_dir):
        if lowered in [each.lower() for each in model.names]:
            return model
    return None


def remove(name: str, cache_dir: Path | None = None) -> Installed:
    """Delete a model from the store: gone at once for others, then file by file.

    Raises `ModelNotFoundError`, or `InUseError` if it is pinned or a process has it
    open.
    """
    model = find_installed(name, cache_dir)
    if model is None:
        raise _not_installed(name, cache_dir)
    first_name = model.names[0]
    if model.pinned:
        raise InUseError(
            f"{first_name} is pinned; unpin it first with `rvllm pull --unpin "
            f"{first_name}`"
        )
    users = users_of(model.path, cache_dir)
    if users:
        raise InUseError(
            f"{first_name} is open in process {users[0].pid}; end that first"
        )
    removed_name = f".removed-{os.getpid()}-{model.path.name}"
    removed = models_folder(cache_dir) / removed_name
    model.path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
    return model


def _not_installed(name: str, cache_dir: Path | None) -> ModelNotFoundError:
    names = [model.names[0] for model in installed(cache_dir)]
    listed = ", ".join(names) or "none"
    hint = ""
    if Path(name).exists():
        hint = "; only models in the store are removed"
    return ModelNotFoundError(
        f"no model called {name[:80]!r} is installed{hint}; installed are {listed}"
    )


def pin(name: str, *, pinned: bool, cache_dir: Path | None = None) -> Installed:
    """Protect an installed model from `remove`, or stop to."""
    model = find_installed(name, cache_dir)
    if model is None:
        raise ModelNotFoundError(
            f"no model called {name[:80]!r} is installed; fetch it with `rvllm pull`"
        )
    if pinned:
        (model.path / PIN).touch()
    else:
        (model.path / PIN).unlink(missing_ok=True)
    return model


def leftovers(cache_dir: Path | None = None) -> list[Path]:
    """Folders of downloads that were cut and of removals that were killed.

    What is being fetched now is none.
    """
    root = models_folder(cache_dir)
    if not root.is_dir():
        return []
    paths = list(root.glob(".removed-*"))
    for path in root.glob(".partial/*"):
        if not is_being_fetched(path.name, cache_dir):
            paths.append(path)
    for path in root.glob("*/.staging-*"):
        if is_left_behind(path):
            paths.append(path)
    return sorted(paths)


def forget_download(name: str, cache_dir: Path | None = None) -> int:
    """Delete what has come of a model that is not whole; returns the bytes.

    What a process fetches now stays, and so does a model that is whole. Raises
    `ModelNotFoundError`.
    """
    repository = repository_of(name)
    if repository is None:  # of a wheel nothing is kept
        return 0
    folder = repository.folder_name
    partial = models_folder(cache_dir) / ".partial" / folder
    if not partial.is_dir() or is_being_fetched(folder, cache_dir):
        return 0
    size = folder_size(partial)
    shutil.rmtree(partial, ignore_errors=True)
    return size


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name == RECORD:
                continue
            with contextlib.suppress(OSError):  # a download moves its files about
                total += Path(parent, name).lstat().st_size
    return total
