"""Models from the Hugging Face hub into the store: absent or complete.

The store is asked first, then the hub library's own cache, then the network. A model
is fetched into a folder of its own, at one commit. The folder is renamed into place
when every file has its checksum. A run that was cut goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvllm_local.errors import DownloadError, ModelNotFoundError, RvllmError
from rvllm_local.models.architecture import check_architecture
from rvllm_local.models.bundle_format import MANIFEST, WEIGHTS
from rvllm_local.models.cache_folder import models_folder, sync_folder
from rvllm_local.models.config_file import read_config
from rvllm_local.models.hub_api import (
    endpoint,
    explained,
    is_offline,
    offered_files,
    redact,
)
from rvllm_local.models.hub_files import fetch_file
from rvllm_local.models.hub_plan import RemoteFile, choose_files
from rvllm_local.models.older_settings import OLDER_SETTINGS
from rvllm_local.models.progress import Progress
from rvllm_local.models.repository import (
    PIN,
    RECORD,
    Repository,
    has_all_files,
    parse_repository,
    read_record,
)
from rvllm_local.models.safetensors_check import has_weight_files, weight_files

_CACHED = (
    "*.json",
    "*.safetensors",
    "tokenizer.model",
    "tiktoken.model",
    "qwen.tiktoken",
    "merges.txt",
    "*.jinja",
)
_REPORT_EACH = 0.05  # of all bytes
_REPORT_S = 5.0  # or after this time, where more has come
_SPARE_BYTES = 16 << 20


def fetch_repository(
    repository: Repository | str,
    progress: Progress,
    *,
    refresh: bool = False,
    cache_dir: Path | None = None,
) -> Path:
    """Folder of the model, or its GGUF file, fetched if it is not there.

    With `refresh` a newer commit of the hub is fetched too. Raises `ModelNotFoundError`
    if the hub does not know it, `DownloadError` or `ChecksumError` if it cannot be had.
    """
    if isinstance(repository, str):
        parsed = parse_repository(repository)
        if parsed is None:
            raise ModelNotFoundError(
                f"{repository!r} is not the name of a repository, like owner/name"
            )
        repository = parsed
    if not refresh and (path := find_repository(repository, cache_dir)):
        return path
    fetch = _Fetch(repository, models_folder(cache_dir), progress)
    if is_offline():
        state = "not" if read_record(fetch.target) is None else "not whole"
        raise DownloadError(
            f"{repository.id} is {state} on this machine, and HF_HUB_OFFLINE forbids "
            "to fetch it"
        )
    try:
        with fetch.only_one():
            if not refresh and (path := _installed(repository, fetch.target)):
                return path  # another process was quicker
            return fetch.run()
    except RvllmError:
        raise
    except Exception as error:
        # Its traceback would show addresses and headers.
        raise explained(repository.id, error) from None


def find_repository(
    repository: Repository, cache_dir: Path | None = None
) -> Path | None:
    """The model's folder or GGUF file, if it is on this machine."""
    target = models_folder(cache_dir) / repository.folder_name
    return _installed(repository, target) or _in_hub_cache(repository)


def fetch_configuration(repository: Repository, folder: Path) -> int:
    """Put a repository's configuration alone into `folder`; returns its weights' bytes.

    Raises as `fetch_repository` does.
    """
    if is_offline():
        raise DownloadError(
            f"{repository.id} is not on this machine, and HF_HUB_OFFLINE forbids to "
            "ask for it"
        )
    commit, offered = offered_files(repository)
    files = choose_files(repository.id, offered)
    try:
        for file in files:
            if file.name in ("config.json", *OLDER_SETTINGS):
                fetch_file(repository.id, commit, file, folder, lambda _: None)
        check_architecture(read_config(folder))
    except RvllmError:
        raise
    except Exception as error:
        raise explained(repository.id, error) from None
    return _total(file for file in files if file.name.endswith(".safetensors"))


def is_whole(folder: Path) -> bool:
    """True if the folder has a configuration and every weight file that its index names."""
    if (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file():
        return True
    if not (folder / "config.json").is_file():
        return False
    return has_weight_files(folder)


def is_being_fetched(name: str, cache_dir: Path | None = None) -> bool:
    """True while a process fetches what the store keeps under this name."""
    try:
        with (models_folder(cache_dir) / ".locks" / name).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _installed(repository: Repository, folder: Path) -> Path | None:
    """The model in the store, if every file is there in the size that was fetched."""
    record = read_record(folder)
    if record is None or not has_all_files(folder, record):
        return None
    return _loadable(repository, folder)


def _loadable(repository: Repository, folder: Path) -> Path:
    """What of the folder is loaded: its GGUF file, or all."""
    return folder / repository.gguf if repository.gguf else folder


def _in_hub_cache(repository: Repository) -> Path | None:
    """The model in the hub library's own cache, if it is whole there."""
    if repository.gguf:
        return None
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            repository.id,
            revision=repository.revision,
            local_files_only=True,
            allow_patterns=list(_CACHED),
        )
    except (OSError, ValueError):  # not there, or only in part
        return None
    folder = Path(snapshot)
    return folder if is_whole(folder) else None


def _total(files: Iterator[RemoteFile] | list[RemoteFile]) -> int:
    return sum(file.size or 0 for file in files)


class _Fetch:
    """One fetch of one repository into the store `models`."""

    def __init__(
        self, repository: Repository, models: Path, progress: Progress
    ) -> None:
        self._repository, self._models = repository, models
        self._progress = progress
        self.target = models / repository.folder_name

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Let one process at a time fetch a model; the lock goes with the process."""
        path = self._models / ".locks" / self.target.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress(
                    f"{self._repository.id} is being fetched by another process; "
                    "waiting"
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def run(self) -> Path:
        """Fetch what the hub has now, unless it is here. Returns what is loaded."""
        name = self._repository.id
        self._progress(f"asking {redact(endpoint())} for {name}")
        commit, offered = offered_files(self._repository)
        files = choose_files(name, offered, self._repository.gguf)
        record = read_record(self.target)
        is_current = record is not None and record.get("commit") == commit
        if record and is_current and has_all_files(self.target, record):
            self._progress(f"{name} is up to date")
            return _loadable(self._repository, self.target)
        partial = self._models / ".partial" / self.target.name
        draft = partial / commit
        self._prepare(draft, files)
        sums = self._fetch_files(commit, files, draft)
        self._write_record(draft, commit, files, sums)
        _install(draft, {*sums, RECORD}, self.target)
        with contextlib.suppress(OSError):
            partial.rmdir()
        return _loadable(self._repository, self.target)

    def _prepare(self, draft: Path, files: list[RemoteFile]) -> None:
        """Make the draft's folder, without drafts of older commits; check the space."""
        for old in draft.parent.glob("*"):
            if old != draft:
                shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True, exist_ok=True)
        present = sum(
            path.stat().st_size for path in draft.rglob("*") if path.is_file()
        )
        missing = _total(files) - present
        free = shutil.disk_usage(draft).free
        if free < missing + _SPARE_BYTES:
            raise DownloadError(
                f"{self._repository.id} needs {missing} more bytes in {self._models}; "
                f"{free} are free"
            )

    def _fetch_files(
        self, commit: str, files: list[RemoteFile], draft: Path
    ) -> dict[str, str]:
        """Fetch every file; returns its sha256 by its name.

        A configuration that could never be served ends the fetch before the weights.
        """
        name = self._repository.id
        report = _Report(name, _total(files), self._progress)
        sums = {}
        for file in files:
            sums[file.name] = fetch_file(name, commit, file, draft, report.add)
            if file.name == "config.json":
                check_architecture(read_config(draft))
        if self._repository.gguf is None and MANIFEST not in sums:
            weight_files(draft)
        return sums

    def _write_record(
        self,
        draft: Path,
        commit: str,
        files: list[RemoteFile],
        sums: dict[str, str],
    ) -> None:
        rows = {}
        for file in files:
            rows[file.name] = {"size": file.size, "sha256": sums[file.name]}
        record: dict[str, Any] = {
            "repository": self._repository.id,
            "revision": self._repository.revision or "main",
            "commit": commit,
            "files": rows,
        }
        text = json.dumps(record, indent=1) + "\n"
        (draft / RECORD).write_text(text, encoding="utf-8")


def _install(draft: Path, names: set[str], target: Path) -> None:
    """Rename a whole model into place, over an older commit of it if there is one."""
    for path in draft.rglob("*"):
        if path.is_file() and path.relative_to(draft).as_posix() not in names:
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


class _Report:
    """Says how much has come, at each twentieth and every few seconds."""

    def __init__(self, repository: str, total: int, progress: Progress) -> None:
        self._repository, self._total, self._progress = repository, total, progress
        self._received = self._reported = 0
        self._reported_at = time.monotonic()

    def add(self, count: int) -> None:
        self._received += count
        is_due = self._received - self._reported >= self._total * _REPORT_EACH
        is_late = time.monotonic() - self._reported_at >= _REPORT_S
        is_complete = self._reported < self._total <= self._received
        if is_due or is_late or is_complete:
            self._reported = self._received
            self._reported_at = time.monotonic()
            share = 100 * self._received // max(1, self._total)
            megabytes = f"{self._received / 1e6:.0f} of {self._total / 1e6:.0f} MB"
            self._progress(f"{self._repository}: {megabytes} ({share} %)")
