"""The bundle's manifest: what it says, how it is spelled, and how files are checked by it.

One spelling is allowed for a manifest, and it carries its own checksum, so that no
changed byte goes unseen. The format is documented in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FORMAT = "rvllm-bundle"
VERSION = 1
ALIGNMENT = 16384
# Tensors of this name only fill the space up to the next boundary.
PADDING = "rvllm.padding."
ALLOWED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
    "README.md",
)
_MAX_MANIFEST = 1 << 20
_MAX_FILE = 256 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_bundle(folder: Path) -> bool:
    """True for a directory that is meant to be a bundle."""
    return (folder / MANIFEST).is_file() or (folder / WEIGHTS).is_file()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds.

    `header_sha256` is of the weight file's header; `recipe` says how the weights were
    made.
    """

    name: str
    weights: FileRecord
    header_sha256: str
    files: Mapping[str, FileRecord]
    parsers: Mapping[str, Any]
    recipe: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The one allowed spelling."""
        value = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "weights": {
                "file": WEIGHTS,
                "size": self.weights.size,
                "sha256": self.weights.sha256,
                "header_sha256": self.header_sha256,
                "alignment": ALIGNMENT,
            },
            "files": {
                name: {"size": row.size, "sha256": row.sha256}
                for name, row in self.files.items()
            },
            "parsers": dict(self.parsers),
            "recipe": dict(self.recipe),
        }
        return _spell({**value, "checksum": hashlib.sha256(_spell(value)).hexdigest()})


def read_manifest(folder: Path) -> Manifest:
    """A bundle's manifest.

    Raises `ModelFileError` for a damaged one and `UnsupportedModelError` for a newer
    version.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ModelFileError(
                f"{path}: a manifest of more than {_MAX_MANIFEST} bytes is not plausible"
            )
        raw = path.read_bytes()
        value = json.loads(raw)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ModelFileError(f"{path} is not the manifest of a bundle")
        if (
            type(value.get("version")) is int
            and value["version"] > VERSION
            and _is_sound(raw, value)
        ):
            raise UnsupportedModelError(
                f"{path}: the bundle has version {value['version']} and this rvllm reads up to {VERSION}; update rvllm"
            )
        if not _is_sound(raw, value) or value["version"] != VERSION:
            raise ModelFileError(
                f"{path}: its checksum is not its own; the bundle was changed, fetch or pack it again"
            )
        return _manifest(value)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        AttributeError,
    ) as error:
        raise ModelFileError(
            f"{path} cannot be read: {error!r:.200}; fetch or pack the bundle again"
        ) from error


def _is_sound(raw: bytes, value: dict[str, Any]) -> bool:
    rest = {key: part for key, part in value.items() if key != "checksum"}
    return (
        raw == _spell(value)
        and value.get("checksum") == hashlib.sha256(_spell(rest)).hexdigest()
    )


def _manifest(value: dict[str, Any]) -> Manifest:
    weights = value["weights"]
    if weights["file"] != WEIGHTS or weights["alignment"] != ALIGNMENT:
        raise ValueError(
            f"weights in {weights['file']!r:.60} with alignment {weights['alignment']!r}"
        )
    if unknown := [name for name in value["files"] if name not in ALLOWED_FILES]:
        raise ValueError(f"file {min(unknown)!r:.60} has no place in a bundle")
    if "config.json" not in value["files"]:
        raise ValueError("there is no config.json")
    if not isinstance(value["parsers"], dict) or not isinstance(value["recipe"], dict):
        raise ValueError("parsers and recipe must be objects")
    return Manifest(
        str(value["name"]),
        _record(weights),
        _digest(weights["header_sha256"]),
        {name: _record(row) for name, row in value["files"].items()},
        value["parsers"],
        value["recipe"],
    )


def _record(row: Mapping[str, Any]) -> FileRecord:
    if type(row["size"]) is not int or row["size"] < 0:
        raise ValueError(f"size {row['size']!r:.40}")
    return FileRecord(row["size"], _digest(row["sha256"]))


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"sha256 {value!r:.80}")
    return value


def _spell(value: Mapping[str, Any]) -> bytes:
    return (
        json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
        + "\n"
    ).encode()


def check_small_files(folder: Path, manifest: Manifest) -> None:
    """Check every file but the weights by the manifest, and the weights' size.

    Raises `ModelFileError`.
    """
    for name, expected in {**manifest.files, WEIGHTS: manifest.weights}.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelFileError(
                f"{path}: the bundle's manifest names this file, and it is not there"
            )
        if path.stat().st_size != expected.size:
            raise ModelFileError(
                f"{path}: it has {path.stat().st_size} bytes, the manifest says {expected.size}"
            )
        if name == WEIGHTS:
            continue
        if expected.size > _MAX_FILE:
            raise ModelFileError(f"{path}: {expected.size} bytes are not plausible")
        digest = hashlib.sha256(path.read_bytes())
        require_digest(path, digest.hexdigest(), expected.sha256)
    expected_names = {*manifest.files, WEIGHTS, MANIFEST}
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")
        if path.name not in expected_names and not is_hidden:
            raise ModelFileError(
                f"{path}: the bundle's manifest does not name this file; remove it"
            )


def require_digest(path: Path, sha256: str, expected: str) -> None:
    """Raise `ModelFileError` if they differ."""
    if sha256 != expected:
        raise ModelFileError(
            f"{path}: its sha256 is {sha256}, the manifest says {expected}; fetch or "
            "pack it again"
        )
