"""Which files of a hub repository make a model, and whether their names and sizes can be trusted.

Only model and tokenizer data is ever chosen: no code, no pickle. Knows no network and no disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rvllm_local.errors import DownloadError
from rvllm_local.models.bundle_format import ALLOWED_FILES, MANIFEST, WEIGHTS
from rvllm_local.models.gguf_parts import part_names
from rvllm_local.models.older_settings import OLDER_SETTINGS
from rvllm_local.models.repository import is_gguf_name
from rvllm_local.models.weight_names import older_models, pickled_names, weight_names

# One folder or more, and a name; no part begins with a dot.
_SAFE_NAME = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9._+ -]{0,150}/)*[A-Za-z0-9_][A-Za-z0-9._+ -]{0,150}"
)
_LONGEST_PATH = 1024
_MOST_FILES = 100_000
_LARGEST_FILE = 1 << 40
_TEMPLATE = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9._-]*\.jinja")
# Of them tokenizer.json holds what they say.
_PIECE_FILES = {
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
}
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
    """What to fetch: a bundle, or configuration, tokenizer and safetensors weights; or `gguf`, one file or several.

    Raises `DownloadError` for a repository with hostile names, without checksums or without such a model.
    """
    files = list(offered)
    if len(files) > _MOST_FILES:
        raise DownloadError(f"{repository} offers {len(files)} files; that is no model")
    chosen_files = _chosen_files(files, gguf)
    _check_whole(repository, chosen_files, [file.name for file in files], gguf)
    check_names(repository, chosen_files)
    for file in chosen_files:
        _check_file(repository, file)
    return sorted(
        chosen_files, key=lambda file: (file.size or 0, file.name)
    )  # the small ones say first if it is no use


def _chosen_files(files: list[RemoteFile], gguf: str | None) -> list[RemoteFile]:
    """The files of a model, whatever else lies beside them under whatever name."""
    by_name = {file.name: file for file in files}
    if gguf is not None:
        return [by_name[name] for name in part_names(gguf) if name in by_name]
    if MANIFEST in by_name and WEIGHTS in by_name:
        names = (MANIFEST, WEIGHTS, *ALLOWED_FILES)
        return [by_name[name] for name in names if name in by_name]
    unwanted = {"README.md"}
    if "tokenizer.json" in by_name:
        unwanted |= _PIECE_FILES
    weights = weight_names(by_name)
    fetched = {*ALLOWED_FILES, *OLDER_SETTINGS, *weights.files, weights.index}
    fetched -= unwanted
    model_files = []
    for file in files:
        if file.name in fetched or _TEMPLATE.fullmatch(file.name):
            model_files.append(file)
    return model_files


def check_names(repository: str, files: list[RemoteFile]) -> None:
    """Refuse names that leave the model's folder, and two that are one on some systems.

    Only files that would be fetched are looked at.
    """
    names: dict[str, str] = {}
    for file in files:
        if not _is_safe(file.name):
            raise DownloadError(
                f"{repository} offers a file named {file.name[:80]!r}, which is not "
                "safe; nothing was fetched"
            )
        other = names.setdefault(file.name.casefold(), file.name)
        if other is not file.name:
            raise DownloadError(
                f"{repository} offers {other[:80]!r} and {file.name[:80]!r}, one file "
                "on many systems"
            )


def _is_safe(name: str) -> bool:
    """True for a path inside its folder that every system can have."""
    if not name.isprintable() or "\\" in name or ":" in name:
        return False
    if len(name) > _LONGEST_PATH:
        return False
    for part in name.split("/"):
        if part in ("", ".", "..") or len(part.encode()) > 255:
            return False
        if part.split(".")[0].lower() in _RESERVED:
            return False
    return True


def _check_whole(
    repository: str, files: list[RemoteFile], offered: list[str], gguf: str | None
) -> None:
    names = {file.name for file in files}
    missing = set(part_names(gguf or "")) - names
    if gguf is not None and files and missing:
        raise DownloadError(
            f"{repository} has {len(files)} of the parts of {gguf}, and lacks "
            f"{min(missing)}; choose another file"
        )
    if gguf is not None and not files:
        near = [name for name in offered if is_gguf_name(name)][:8]
        raise DownloadError(
            f"{repository} has no file {gguf}; it has {', '.join(near) or 'no GGUF file'}"
        )
    if gguf is not None or WEIGHTS in names:
        return
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return
    ggufs = [name for name in offered if is_gguf_name(name)]
    if ggufs:
        raise DownloadError(
            f"{repository} holds GGUF files; name one of them, as in {repository}/{min(ggufs)}"
        )
    models = older_models(offered)
    if "config.json" in names and len(models) > 1:
        shown = ", ".join(sorted(models)[:4])
        raise DownloadError(
            f"{repository} holds several models, {shown}; fetch it by hand, and keep one"
        )
    hint = "no config.json with safetensors weights"
    pickles = pickled_names(offered)
    if pickles:
        hint = f"only pickled weights ({pickles[0][:80]}), which are never read"
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
