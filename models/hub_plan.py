"""Which files of a hub repository make a model, and whether their names and sizes can be trusted.

Only model and tokenizer data is ever chosen: no code, no pickle. Knows no network and no disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rvllm_local.errors import DownloadError
from rvllm_local.models.bundle_format import ALLOWED_FILES, MANIFEST, WEIGHTS

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,150}")
_LONGEST_PATH = 1024
_MOST_FILES = 100_000
_LARGEST_FILE = 1 << 40
_WANTED = re.compile(
    r"model(-\d{5}-of-\d{5}|[._-][A-Za-z0-9._-]*)?\.safetensors|model\.safetensors\.index\.json"
)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# One of these names on any system; what only differs in case is one file on a Mac.
_RESERVED = frozenset({"con", "prn", "aux", "nul"})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that a repository offers. One of the checksums is given: `git_sha1` is of git's blob."""

    name: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None


def choose_files(
    repository: str, offered: Iterable[RemoteFile], gguf: str | None = None
) -> list[RemoteFile]:
    """What to fetch: a bundle, or configuration, tokenizer and safetensors weights; or the one `gguf` file.

    Raises `DownloadError` for a repository with hostile names, without checksums or without such a model.
    """
    files = list(offered)
    check_names(repository, files)
    by_name = {file.name: file for file in files}
    if gguf is not None:
        wanted = [by_name[gguf]] if gguf in by_name else []
    elif MANIFEST in by_name and WEIGHTS in by_name:
        wanted = [
            by_name[name]
            for name in (MANIFEST, WEIGHTS, *ALLOWED_FILES)
            if name in by_name
        ]
    else:
        wanted = [
            file
            for file in files
            if file.name in ALLOWED_FILES or _WANTED.fullmatch(file.name)
        ]
        wanted = [file for file in wanted if file.name != "README.md"]
    _check_whole(repository, wanted, by_name.keys(), gguf)
    for file in wanted:
        _check_file(repository, file)
    return sorted(
        wanted, key=lambda file: (file.size or 0, file.name)
    )  # the small ones say first if it is no use


def check_names(repository: str, files: list[RemoteFile]) -> None:
    """Refuse a repository that offers a name which leaves its folder, or two that are one on some systems."""
    if len(files) > _MOST_FILES:
        raise DownloadError(f"{repository} offers {len(files)} files; that is no model")
    seen: dict[str, str] = {}
    for file in files:
        name = file.name
        parts = name.split("/")
        if (
            not name.isprintable()
            or "\\" in name
            or len(name) > _LONGEST_PATH
            or any(
                part in ("", ".", "..") or len(part.encode()) > 255 for part in parts
            )
            or ":" in name
            or any(part.split(".")[0].lower() in _RESERVED for part in parts)
        ):
            raise DownloadError(
                f"{repository} offers a file named {name[:80]!r}, which is not safe; nothing was fetched"
            )
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            raise DownloadError(
                f"{repository} offers {other[:80]!r} and {name[:80]!r}, one file on many systems"
            )


def _check_whole(
    repository: str, wanted: list[RemoteFile], offered: Iterable[str], gguf: str | None
) -> None:
    names = {file.name for file in wanted}
    if gguf is not None and (parts := _PART.search(gguf)) and int(parts[1]) > 1:
        raise DownloadError(
            f"{repository}: {gguf} is one of {int(parts[1])} parts, which are not joined here; choose another file"
        )
    if gguf is not None and not wanted:
        near = [name for name in offered if name.endswith(".gguf")][:8]
        raise DownloadError(
            f"{repository} has no file {gguf}; it has {', '.join(near) or 'no GGUF file'}"
        )
    if gguf is not None or WEIGHTS in names:
        return
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return
    ggufs = [name for name in offered if name.endswith(".gguf") and "/" not in name]
    if ggufs:
        raise DownloadError(
            f"{repository} holds GGUF files; name one of them, as in {repository}/{min(ggufs)}"
        )
    pickled = any(name.endswith(_PICKLES) for name in offered)
    hint = (
        "only pickled weights, which are never read"
        if pickled
        else "no config.json with safetensors weights"
    )
    raise DownloadError(f"{repository} holds {hint}; choose another repository")


def _check_file(repository: str, file: RemoteFile) -> None:
    if not _SAFE_NAME.fullmatch(file.name):
        raise DownloadError(
            f"{repository} offers a file named {file.name[:80]!r}, which is not safe"
        )
    if type(file.size) is not int or not 0 <= file.size <= _LARGEST_FILE:
        raise DownloadError(
            f"{repository} does not say how large {file.name} is; try the hub itself (unset HF_ENDPOINT)"
        )
    sha256 = file.sha256 is not None and re.fullmatch("[0-9a-f]{64}", file.sha256)
    git = file.git_sha1 is not None and re.fullmatch("[0-9a-f]{40}", file.git_sha1)
    if not sha256 and not git:
        raise DownloadError(
            f"{repository} gives no checksum of {file.name}; try the hub itself (unset HF_ENDPOINT)"
        )
