"""Models from the Hugging Face hub into the store: absent or complete, never code, never pickle.

The store first, then the hub library's own cache, then the network. A model is fetched into a folder of its own, at
one commit, and renamed into place when every file has its checksum; a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.errors import (
    DownloadError,
    ModelFileError,
    ModelNotFoundError,
    RvllmError,
)
from rvllm_local.models.bundle_format import MANIFEST, WEIGHTS
from rvllm_local.models.hub_files import endpoint, fetch_file, is_offline
from rvllm_local.models.hub_plan import RemoteFile, choose_files
from rvllm_local.models.safetensors_check import weight_files
from rvllm_local.models.wheel_fetch import Progress, cache_folder, sync_folder

RECORD = ".rvllm.json"
PIN = ".pinned"  # a file in a model's folder that protects it from removal
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_GGUF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,150}\.gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECRET = re.compile(r"hf_[A-Za-z0-9]+|(?<=//)[^/@\s]+(?=@)|(?<=[Bb]earer )\S+")
_CACHED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")
_TOLD_EACH = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """`owner/name`, at a revision (None is the main one), and one GGUF file of it or the whole model."""

    repository: str
    revision: str | None = None
    gguf: str | None = None

    @property
    def folder(self) -> Path:
        """Where the store keeps it."""
        name = self.repository.replace("/", "--") + (
            f"@{self.revision}" if self.revision else ""
        )
        return cache_folder() / (
            f"{name}--{self.gguf.removesuffix('.gguf')}" if self.gguf else name
        )


def parse_repository(name: str) -> Wanted | None:
    """What `owner/name`, `owner/name@revision` or `owner/name/file.gguf` stands for; None for anything else."""
    base, _, revision = name.partition("@")
    head, _, last = base.rpartition("/")
    gguf = last if "/" in head and _GGUF.fullmatch(last) else None
    repository = head if gguf else base
    if (
        not _REPOSITORY.fullmatch(repository)
        or ".." in name
        or "--" in repository
        or len(name) > 200
    ):
        return None
    if "@" in name and not _REVISION.fullmatch(revision):
        return None
    return Wanted(repository, revision or None, gguf)


def is_repository_id(name: str) -> bool:
    """True for what looks like a repository of the hub."""
    return parse_repository(name) is not None


def fetch_repository(
    wanted: Wanted | str, progress: Progress, *, refresh: bool = False
) -> Path:
    """Folder of the model (or its GGUF file), fetched if it is not there; with `refresh`, if the hub has a newer one.

    Raises `ModelNotFoundError` if the hub does not know it, `DownloadError` or `ChecksumError` if it cannot be had.
    """
    if isinstance(wanted, str):
        parsed = parse_repository(wanted)
        if parsed is None:
            raise ModelNotFoundError(
                f"{wanted!r} is not the name of a repository, like owner/name"
            )
        wanted = parsed
    if not refresh and (found := find_repository(wanted)):
        return found
    if is_offline():
        state = "not" if read_record(wanted.folder) is None else "not whole"
        raise DownloadError(
            f"{wanted.repository} is {state} on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        )
    try:
        with _only_one(wanted, progress):
            if not refresh and (
                found := _installed(wanted)
            ):  # another process was quicker
                return found
            return _fetch(wanted, progress)
    except RvllmError:
        raise
    except Exception as error:
        raise _explained(
            wanted.repository, error
        ) from None  # its traceback would show addresses and headers


def find_repository(wanted: Wanted) -> Path | None:
    """The model's folder or GGUF file, if it is on this machine."""
    return _installed(wanted) or _cached(wanted)


def fetch_configuration(wanted: Wanted, folder: Path) -> int:
    """Put a repository's config.json alone into `folder`; returns the bytes of its weights.

    Raises as `fetch_repository` does.
    """
    if is_offline():
        raise DownloadError(
            f"{wanted.repository} is not on this machine, and HF_HUB_OFFLINE forbids to ask for it"
        )
    commit, found = offered(wanted)
    files = choose_files(wanted.repository, found)
    try:
        for file in files:
            if file.name == "config.json":
                fetch_file(wanted.repository, commit, file, folder, lambda _: None)
                _check_config(folder / file.name)
    except RvllmError:
        raise
    except Exception as error:
        raise _explained(wanted.repository, error) from None
    return sum(file.size or 0 for file in files if file.name.endswith(".safetensors"))


def is_whole(folder: Path) -> bool:
    """True if the folder has a configuration and every weight file that its index names."""
    if (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file():
        return True
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    try:
        shards = set(
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(shards) and all(
        isinstance(shard, str) and (folder / shard).is_file() for shard in shards
    )


def read_record(folder: Path) -> dict[str, Any] | None:
    """What is noted of a fetched model: repository, revision, commit and files; None if it was not fetched here."""
    try:
        value = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def redact(text: str) -> str:
    """One line without anything that looks like a token or a password."""
    return _SECRET.sub("***", " ".join(text.split()))[:300]


def is_being_fetched(name: str) -> bool:
    """True while a process fetches what the store keeps under this name."""
    try:
        with (cache_folder() / ".locks" / name).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _installed(wanted: Wanted) -> Path | None:
    """The model in the store, if every file is there in the size that was fetched."""
    record = read_record(wanted.folder)
    if record is None or not _has_all(wanted.folder, record):
        return None
    return wanted.folder / wanted.gguf if wanted.gguf else wanted.folder


def _has_all(folder: Path, record: dict[str, Any]) -> bool:
    try:
        return all(
            (folder / name).stat().st_size == row["size"]
            for name, row in record["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _cached(wanted: Wanted) -> Path | None:
    """The model in the hub library's own cache, if it is whole there."""
    if wanted.gguf:
        return None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                wanted.repository,
                revision=wanted.revision,
                local_files_only=True,
                allow_patterns=list(_CACHED),
            )
        )
    except (OSError, ValueError):  # not there, or only in part
        return None
    return folder if is_whole(folder) else None


@contextmanager
def _only_one(wanted: Wanted, progress: Progress) -> Iterator[None]:
    """Let one process at a time fetch a model; the lock goes with the process."""
    place = cache_folder() / ".locks" / wanted.folder.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(
                f"{wanted.repository} is being fetched by another process; waiting"
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(wanted: Wanted, progress: Progress) -> Path:
    progress(f"asking {redact(endpoint())} for {wanted.repository}")
    commit, found = offered(wanted)
    files = choose_files(wanted.repository, found, wanted.gguf)
    record = read_record(wanted.folder)
    if record and record.get("commit") == commit and _has_all(wanted.folder, record):
        progress(f"{wanted.repository} is up to date")
        return wanted.folder / wanted.gguf if wanted.gguf else wanted.folder
    partial = cache_folder() / ".partial" / wanted.folder.name
    draft = partial / commit
    for old in partial.glob("*"):  # of a commit that is no longer the one
        if old != draft:
            shutil.rmtree(old, ignore_errors=True)
    draft.mkdir(parents=True, exist_ok=True)
    _check_space(wanted, files, draft)
    told = _Teller(wanted.repository, sum(file.size or 0 for file in files), progress)
    sums = {}
    for file in files:
        sums[file.name] = fetch_file(wanted.repository, commit, file, draft, told.add)
        if file.name == "config.json":
            _check_config(draft / file.name)
    if wanted.gguf is None and MANIFEST not in sums:
        weight_files(draft)
    record = {
        "repository": wanted.repository,
        "revision": wanted.revision or "main",
        "commit": commit,
        "files": {
            file.name: {"size": file.size, "sha256": sums[file.name]} for file in files
        },
    }
    (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _install(draft, {*sums, RECORD}, wanted.folder)
    with contextlib.suppress(OSError):
        partial.rmdir()
    return wanted.folder / wanted.gguf if wanted.gguf else wanted.folder


def offered(wanted: Wanted) -> tuple[str, list[RemoteFile]]:
    """The commit of a revision, and its files. Raises as `fetch_repository` does."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint()).model_info(
            wanted.repository, revision=wanted.revision, files_metadata=True, timeout=30
        )
    except Exception as error:
        raise _explained(wanted.repository, error) from None
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(
            f"{wanted.repository}: the hub names no commit; try again later"
        )
    found = []
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        found.append(
            RemoteFile(
                str(sibling.rfilename),
                sibling.size,
                sha256,
                None if sha256 else sibling.blob_id,
            )
        )
    return info.sha, found


def _check_config(path: Path) -> None:
    """Refuse what could never be served before gigabytes of it are fetched."""
    from rvllm_local.models.families import check_architecture
    from rvllm_local.models.loader import read_config

    if path.stat().st_size > 16 << 20:
        raise ModelFileError(
            f"{path}: a configuration of {path.stat().st_size} bytes is not plausible"
        )
    check_architecture(read_config(path.parent))


def _check_space(wanted: Wanted, files: list[RemoteFile], draft: Path) -> None:
    have = sum(path.stat().st_size for path in draft.iterdir() if path.is_file())
    needed = sum(file.size or 0 for file in files) - have
    free = shutil.disk_usage(draft).free
    if free < needed + (16 << 20):
        raise DownloadError(
            f"{wanted.repository} needs {needed} more bytes in {cache_folder()}; {free} are free"
        )


def _install(draft: Path, names: set[str], target: Path) -> None:
    """Rename a whole model into place, over an older commit of it if there is one."""
    for path in draft.iterdir():
        if path.name not in names:
            path.unlink()
    if (target / PIN).is_file():
        (draft / PIN).touch()
    sync_folder(draft)
    if target.exists():
        retired = draft.parent / f"retired-{os.getpid()}"
        target.rename(retired)
        draft.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        draft.rename(target)
    sync_folder(target.parent)


def _explained(repository: str, error: Exception) -> RvllmError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{repository} is gated: accept its terms on the hub and run `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repository} has no such revision; leave out the part after @ for the newest"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the Hugging Face hub has no repository {repository!r} that you may read"
        )
    reason = redact(f"{type(error).__name__}: {error}")
    return DownloadError(
        f"{repository} could not be fetched: {reason}; what came is kept, try again to go on"
    )


class _Teller:
    """Tells progress in words, at each twentieth."""

    def __init__(self, repository: str, total: int, progress: Progress) -> None:
        self._repository, self._total, self._progress = repository, total, progress
        self._have = self._told = 0

    def add(self, count: int) -> None:
        self._have += count
        if (
            self._have - self._told >= self._total * _TOLD_EACH
            or self._told < self._total <= self._have
        ):
            self._told = self._have
            share = 100 * self._have // max(1, self._total)
            self._progress(
                f"{self._repository}: {self._have / 1e6:.0f} of {self._total / 1e6:.0f} MB ({share} %)"
            )
