"""Names of hub repositories, the folders that keep them, and the record of what was fetched.

Knows names and small files only: no network.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.models.gguf_parts import part_names

RECORD = ".rvllm.json"
PIN = ".pinned"  # a file in a model's folder that protects it from removal
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
# A GGUF file, in folders or not, with a letter case and an ending of any kind.
_GGUF = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9._+ -]{0,150}/){0,4}"
    r"[A-Za-z0-9_][A-Za-z0-9._+ -]{0,150}\.gguf(\.[A-Za-z0-9]{1,12})?",
    re.IGNORECASE,
)
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Repository:
    """`owner/name` at a revision (None is the main one): one GGUF file of it, or all."""

    id: str
    revision: str | None = None
    gguf: str | None = None

    @property
    def folder_name(self) -> str:
        """The name of its folder in the store."""
        name = self.id.replace("/", "--")
        if self.revision:
            name += f"@{self.revision}"
        if self.gguf:
            file = part_names(self.gguf)[0]
            stem = file[:-5] if file.endswith(".gguf") else file
            name += f"--{stem.replace('/', '--')}"
        return name


def parse_repository(name: str) -> Repository | None:
    """What `owner/name`, `owner/name@revision` or `owner/name/file.gguf` stands for.

    None for anything else.
    """
    base, _, revision = name.partition("@")
    repository, file = base, None
    if base.count("/") >= 2:
        owner, model, file = base.split("/", 2)
        repository = f"{owner}/{model}"
        if not is_gguf_name(file):
            return None
    if len(name) > _LONGEST_NAME or ".." in name or "--" in repository:
        return None
    if not _REPOSITORY.fullmatch(repository):
        return None
    if "@" in name and not _REVISION.fullmatch(revision):
        return None
    return Repository(repository, revision or None, file)


def is_gguf_name(name: str) -> bool:
    """True for the path of a GGUF file, inside a repository or a folder."""
    return _GGUF.fullmatch(name) is not None


def read_record(folder: Path) -> dict[str, Any] | None:
    """What is noted of a fetched model: repository, revision, commit and files.

    None if it was not fetched here.
    """
    try:
        value = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def has_all_files(folder: Path, record: dict[str, Any]) -> bool:
    """True if every file of the record is there in the size that was fetched."""
    try:
        for name, row in record["files"].items():
            if (folder / name).stat().st_size != row["size"]:
                return False
    except (OSError, KeyError, TypeError, AttributeError):
        return False
    return True
