"""The models on this machine: what is installed, how large it is, and removing it.

Knows the store's folders; fetching is `hub` and `hub_repo`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.errors import ModelNotFoundError, RvllmError
from rvllm_local.models.bundle import is_bundle
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.hub_fetch import (
    PIN,
    RECORD,
    is_being_fetched,
    parse_repository,
    read_record,
)
from rvllm_local.models.leases import users_of
from rvllm_local.models.wheel_fetch import cache_folder, is_left_behind


@dataclass(frozen=True, slots=True)
class Installed:
    """A model in the store. `names` are what it answers to, its catalogue name first; `size` is bytes on disk."""

    names: tuple[str, ...]
    path: Path
    size: int
    kind: str
    commit: str | None
    pinned: bool


class InUseError(RvllmError):
    """The model is pinned, or a process has it open."""


def installed() -> list[Installed]:
    """All models in the store, by name; what is only half there is none."""
    root = cache_folder()
    if not root.is_dir():
        return []
    catalogue = Catalogue.load()
    by_repo: dict[tuple[str, str], str] = {}
    for known in catalogue.entries.values():
        if known.repo is not None:
            by_repo[known.repo, known.revision or "main"] = known.name
    found = []
    for folder in sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    ):
        entry = catalogue.entries.get(folder.name)
        record = read_record(folder)
        if record is not None:
            found.append(_fetched(folder, record, by_repo))
        elif entry is not None and entry.file and (folder / entry.file).is_file():
            found.append(
                Installed(
                    (entry.name,),
                    folder,
                    folder_size(folder),
                    "gguf",
                    None,
                    _is_pinned(folder),
                )
            )
        elif is_bundle(folder):
            name = folder.name.removesuffix(".rvllm")
            found.append(
                Installed(
                    (name,),
                    folder,
                    folder_size(folder),
                    "bundle",
                    None,
                    _is_pinned(folder),
                )
            )
    return sorted(found, key=lambda one: one.names[0])


def _fetched(
    folder: Path, record: dict[str, object], by_repo: dict[tuple[str, str], str]
) -> Installed:
    repository, revision = str(record.get("repository")), str(record.get("revision"))
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    name = f"{repository}/{ggufs[0]}" if ggufs else repository
    if revision != "main":
        name += f"@{revision}"
    names = (
        (by_repo[repository, revision], name)
        if (repository, revision) in by_repo and not ggufs
        else (name,)
    )
    kind = "gguf" if ggufs else "bundle" if is_bundle(folder) else "safetensors"
    commit = str(record["commit"]) if "commit" in record else None
    return Installed(
        names, folder, folder_size(folder), kind, commit, _is_pinned(folder)
    )


def find_installed(name: str) -> Installed | None:
    """The installed model that answers to `name`."""
    wanted = name.lower()
    return next(
        (one for one in installed() if wanted in (each.lower() for each in one.names)),
        None,
    )


def remove(name: str) -> Installed:
    """Delete a model from the store: gone at once for others, then file by file.

    Raises `ModelNotFoundError`, or `InUseError` if it is pinned or a process has it open.
    """
    model = find_installed(name)
    if model is None:
        known = ", ".join(one.names[0] for one in installed()) or "none"
        elsewhere = (
            "; only models in the store are removed" if Path(name).exists() else ""
        )
        raise ModelNotFoundError(
            f"no model called {name[:80]!r} is installed{elsewhere}; installed are {known}"
        )
    if model.pinned:
        raise InUseError(
            f"{model.names[0]} is pinned; unpin it first with `rvllm pull --unpin {model.names[0]}`"
        )
    if users := users_of(model.path):
        raise InUseError(
            f"{model.names[0]} is open in process {users[0].pid}; end that first"
        )
    grave = cache_folder() / f".removed-{os.getpid()}-{model.path.name}"
    model.path.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)
    return model


def pin(name: str, *, pinned: bool) -> Installed:
    """Protect an installed model from `remove`, or stop to."""
    model = find_installed(name)
    if model is None:
        raise ModelNotFoundError(
            f"no model called {name[:80]!r} is installed; fetch it with `rvllm pull`"
        )
    if pinned:
        (model.path / PIN).touch()
    else:
        (model.path / PIN).unlink(missing_ok=True)
    return model


def leftovers() -> list[Path]:
    """Folders of downloads that were cut and of removals that were killed; what is being fetched now is none."""
    root = cache_folder()
    if not root.is_dir():
        return []
    cut = [path for path in root.glob(".partial/*") if not is_being_fetched(path.name)]
    staged = [path for path in root.glob("*/.staging-*") if is_left_behind(path)]
    return sorted([*root.glob(".removed-*"), *cut, *staged])


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a download moves its files about
                total += Path(parent, name).lstat().st_size if name != RECORD else 0
    return total


def _is_pinned(folder: Path) -> bool:
    return (folder / PIN).is_file()


def is_known_name(name: str) -> bool:
    """True for a catalogue name or a repository of the hub."""
    return (
        name.lower() in Catalogue.load().entries or parse_repository(name) is not None
    )
