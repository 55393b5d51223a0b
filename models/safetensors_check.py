"""Checks safetensors files before MLX reads them.

MLX accepts duplicate names and overlapping tensors. An index of several files is checked,
too: what it names must be there, and nothing may lie outside the folder.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rvllm_local.errors import ModelFileError
from rvllm_local.models.config_file import read_settings
from rvllm_local.models.older_settings import stated_names
from rvllm_local.models.stand_in import refuse_stand_in
from rvllm_local.models.weight_names import WeightNames, absence, weight_names

_MAX_HEADER = 16 << 20  # 100,000 tensors; the library would take 100 MB
_NUMBERED = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the header has it.

    `start` and `stop` are bytes from the file's beginning.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check_safetensors(path: Path) -> None:
    """Raise `ModelFileError` for a file that is missing, cut, or contradicts itself."""
    if not path.is_file():
        raise ModelFileError(
            f"{path}: this weight file is missing; fetch the model again"
        )
    refuse_stand_in(path)
    # The library takes the last of two tensors with one name, and a header of any size.
    read_header(path)
    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a sound safetensors file: {error}; fetch it again"
        ) from error


def read_header(path: Path) -> tuple[dict[str, StoredTensor], bytes]:
    """The tensors as the header has them, each name once, and its raw bytes.

    `check_safetensors` checks where they lie.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise ModelFileError(
                    f"{path}: a header of {length} bytes is not plausible"
                )
            raw = file.read(length)
        rows = json.loads(raw, object_pairs_hook=_once)
        rows.pop("__metadata__", None)
        base = 8 + length
        tensors = {name: _stored(row, base) for name, row in rows.items()}
        return tensors, raw
    except (
        OSError,
        ValueError,
        struct.error,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelFileError(
            f"{path}: its header cannot be read: {error!r:.200}; fetch it again"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header, in which no key may appear twice."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"{name!r:.120} appears twice")
        members[name] = value
    return members


def _stored(row: Mapping[str, Any], base: int) -> StoredTensor:
    start, stop = row["data_offsets"]
    return StoredTensor(row["dtype"], tuple(row["shape"]), base + start, base + stop)


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files, all checked.

    An index that names files or weights which are not there is stale: then all weight
    files of the folder count, and loading says what is missing. Raises
    `ModelFileError` that names what is missing or wrong.
    """
    names = names_in(folder)
    if names.index is not None:
        paths = _indexed(folder, folder / names.index)
        if paths:
            return paths
    paths = [folder / name for name in names.files]
    if not paths:
        hint = absence(path.name for path in folder.iterdir())
        raise ModelFileError(f"{folder}: there are no model*.safetensors files{hint}")
    _check_numbers(folder, paths)
    for path in paths:
        check_safetensors(path)
    return paths


def has_weight_files(folder: Path) -> bool:
    """True if no weight file is missing, by the index or by the files' own numbers."""
    try:
        names = names_in(folder)
        paths = [folder / name for name in names.files]
        if names.index is not None:
            shards = set(_weight_map(folder / names.index).values())
            if all((folder / shard).is_file() for shard in shards):
                return True
        _check_numbers(folder, paths)
    except ModelFileError:
        return False
    return bool(paths)


def stale_index(folder: Path) -> str | None:
    """The name of an index that names files or weights which are not there."""
    index = names_in(folder).index
    if index is None or _indexed(folder, folder / index):
        return None
    return index


def names_in(folder: Path) -> WeightNames:
    """The names of a folder's weight files, none of them checked.

    Raises `ModelFileError` for settings that cannot be read.
    """
    if not folder.is_dir():
        return WeightNames()
    names = [path.name for path in folder.iterdir() if path.is_file()]
    stated: list[str] = []
    if "config.json" in names:
        config = read_settings(folder / "config.json")
        stated = stated_names(folder, config, read_settings)
    return weight_names(names, stated)


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The files that the index names, if they hold what it says; none if it is stale."""
    by_shard: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        by_shard.setdefault(shard, set()).add(name)
    for shard in by_shard:
        if not _SHARD.fullmatch(shard):
            raise ModelFileError(
                f"{index}: {shard!r:.120} is not the name of a weight file in this "
                "folder"
            )
    paths = [folder / shard for shard in sorted(by_shard)]
    for path in paths:
        if not path.is_file():
            return []
        check_safetensors(path)
        if by_shard[path.name] - read_header(path)[0].keys():
            return []
    return paths


def _weight_map(index: Path) -> dict[str, str]:
    try:
        value = json.loads(index.read_text(encoding="utf-8"))
        shards = value["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"{index}: it has no readable weight_map: {error!r:.200}"
        ) from error
    is_map = isinstance(shards, dict) and bool(shards)
    if not is_map or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelFileError(
            f"{index}: weight_map does not name a file for each weight"
        )
    assert isinstance(shards, dict)
    return shards


def _check_numbers(folder: Path, paths: list[Path]) -> None:
    """Files that count themselves must all be there."""
    numbers_by_total: dict[int, set[int]] = {}
    for path in paths:
        match = _NUMBERED.fullmatch(path.name)
        if match is not None:
            total = int(match[2])
            numbers_by_total.setdefault(total, set()).add(int(match[1]))
    for total, numbers in numbers_by_total.items():
        if len(numbers) < total <= 10_000:
            absent = min(set(range(1, total + 1)) - numbers)
            raise ModelFileError(
                f"{folder}: weight file {absent} of {total} is missing; fetch the model "
                "again"
            )
