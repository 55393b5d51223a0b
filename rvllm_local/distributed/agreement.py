"""What all ranks must have alike: versions, and the model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from rvllm_local import __version__
from rvllm_local.models.locate import ModelFiles

_PACKAGES = ("mlx", "mlx-lm", "numpy")
_SAMPLE = 2**20  # bytes at both ends of a file of weights


def versions() -> dict[str, str]:
    """This process's versions of whatever decides on results."""
    found_versions = {"rvllm": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        found_versions[name] = importlib.metadata.version(name)
    return found_versions


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """Which versions differ, for people; None if none does."""
    parts = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine = ours.get(name, "none")
        other = theirs.get(name, "none")
        if mine != other:
            parts.append(f"{name} {other} there and {mine} here")
    return ", ".join(parts) or None


def model_mark(files: ModelFiles) -> str:
    """A hash of a model's configuration, and of each weight file's name and ends.

    Files are too large to be read as a whole at each start. Where the file ends differ
    in nothing, weights of another model would have to have the same header and tail.
    """
    digest = hashlib.sha256()
    config = files.path / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for path in sorted(files.weight_paths()):
        digest.update(path.name.encode())
        _add_ends(digest, path)
    return digest.hexdigest()


def _add_ends(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
