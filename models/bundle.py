"""Writes and opens bundles, the project's own model format.

A bundle is one directory. Its weights are one safetensors file whose tensors begin on
16 KiB boundaries: Metal adopts them from the mapped file without a copy. Elsewhere each
tensor is read once, when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.errors import DownloadError, ModelFileError
from rvllm_local.models.bundle_format import (
    ALIGNMENT,
    MANIFEST,
    PADDING,
    WEIGHTS,
    FileRecord,
    Manifest,
    check_small_files,
    read_manifest,
    require_digest,
)
from rvllm_local.models.cache_folder import staging, sync_folder
from rvllm_local.models.file_stamps import StampedFiles, file_sha256
from rvllm_local.models.progress import Progress, silent
from rvllm_local.models.safetensors_check import (
    StoredTensor,
    check_safetensors,
    read_header,
)

# safetensors' names, MLX's types, and a numpy type of the same width
_DTYPES: Mapping[str, tuple[mx.Dtype, type[np.generic]]] = {
    "F32": (mx.float32, np.float32),
    "F16": (mx.float16, np.float16),
    "BF16": (mx.bfloat16, np.uint16),
    "U32": (mx.uint32, np.uint32),
    "U16": (mx.uint16, np.uint16),
    "U8": (mx.uint8, np.uint8),
    "I32": (mx.int32, np.int32),
    "I64": (mx.int64, np.int64),
    "I16": (mx.int16, np.int16),
    "I8": (mx.int8, np.int8),
    "BOOL": (mx.bool_, np.bool_),
}
_NAMES = {dtype: name for name, (dtype, _) in _DTYPES.items()}
_SPARE = 64 << 20  # bytes that stay free beside a new bundle's weights


def open_bundle(
    folder: Path,
    *,
    verify: bool = False,
    progress: Progress = silent,
    cache_dir: Path | None = None,
) -> Manifest:
    """Check a bundle and return its manifest.

    Manifest, header and all small files are checked every time. The weights' own
    checksum is checked when the file is new here or was written since, and always with
    `verify`. Raises `ModelFileError` for any changed byte.
    """
    manifest = read_manifest(folder)
    check_small_files(folder, manifest)
    weights = folder / WEIGHTS
    check_safetensors(weights)
    _, header = read_header(weights)
    header_sha256 = hashlib.sha256(header).hexdigest()
    require_digest(weights, header_sha256, manifest.header_sha256)
    stamped = StampedFiles([weights], cache_dir)
    fact = f"sha256 {manifest.weights.sha256}"
    if verify or not stamped.is_known(fact):
        progress(f"checking {weights} ({manifest.weights.size / 1e6:.0f} MB)")
        weights_sha256 = file_sha256(weights)
        require_digest(weights, weights_sha256, manifest.weights.sha256)
        stamped.note(fact)
    return manifest


def bundle_weights(folder: Path) -> dict[str, mx.array]:
    """The weights of a bundle that was opened.

    They are mapped on Metal; elsewhere they are read when they are evaluated.
    """
    path = folder / WEIGHTS
    rows, _ = read_header(path)
    tensors: dict[str, StoredTensor] = {}
    for name, row in rows.items():
        if name.startswith(PADDING):
            continue
        if row.dtype not in _DTYPES or row.start % ALIGNMENT:
            raise ModelFileError(
                f"{path}: tensor {name!r:.80} of {row.dtype} at byte {row.start} is "
                "not a bundle's"
            )
        tensors[name] = row
    if mx.metal.is_available():
        mapped = _mapped(path, tensors)
        if mapped is not None:
            return mapped
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return {name: loaded[name] for name in tensors}


def _mapped(
    path: Path, tensors: Mapping[str, StoredTensor]
) -> dict[str, mx.array] | None:
    """Arrays over the mapped file; None where MLX would copy."""
    with path.open("rb") as file:
        # A private mapping: nothing that is written to it reaches the file.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    arrays: dict[str, mx.array] = {}
    try:
        for name, row in tensors.items():
            arrays[name] = _adopt(memory, row)
    except (ValueError, TypeError):
        return None
    return arrays


def _adopt(memory: mmap.mmap, row: StoredTensor) -> mx.array:
    dtype, numpy_dtype = _DTYPES[row.dtype]
    width = np.dtype(numpy_dtype).itemsize
    count = (row.stop - row.start) // width
    flat = np.frombuffer(memory, dtype=numpy_dtype, count=count, offset=row.start)
    shaped = flat.reshape(row.shape)
    array = mx.asarray(shaped, copy=False)
    if array.dtype == dtype:
        return array
    return array.view(dtype)


def write_bundle(
    target: Path,
    *,
    name: str,
    weights: Iterable[tuple[str, mx.array]],
    files: Mapping[str, bytes],
    parsers: Mapping[str, Any],
    recipe: Mapping[str, Any],
    progress: Progress = silent,
) -> Manifest:
    """Write a bundle, whole or not at all.

    `files` are the small files by name. `weights` are evaluated one by one and dropped.
    Raises `DownloadError` if there is no room, `ModelFileError` if the target exists.
    """
    target = target.resolve()
    rows = sorted(weights, key=lambda row: row[0])
    if target.exists():
        raise ModelFileError(
            f"{target} exists already; choose another place or remove it"
        )
    _check_names(rows)
    size = 0
    for _, value in rows:
        size += value.nbytes + _gap_after(value.nbytes)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, size)
        with staging(target.parent) as draft:
            progress(f"writing {size / 1e6:.0f} MB of weights")
            folder = draft / "bundle"
            folder.mkdir()
            header_sha256, record = _write_weights(folder / WEIGHTS, rows)
            records: dict[str, FileRecord] = {}
            for file_name, data in files.items():
                records[file_name] = _write_file(folder / file_name, data)
            manifest = Manifest(
                name=name,
                weights=record,
                header_sha256=header_sha256,
                files=records,
                parsers=parsers,
                recipe=recipe,
            )
            _write_file(folder / MANIFEST, manifest.to_bytes())
            sync_folder(folder)
            folder.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        raise DownloadError(
            f"the bundle could not be written to {target}: {error}"
        ) from error
    return manifest


def _gap_after(size: int) -> int:
    """Bytes from here to the next boundary."""
    return -size % ALIGNMENT


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise DownloadError(
            f"the bundle needs {size} bytes in {folder}; {free} are free"
        )


def _check_names(rows: list[tuple[str, mx.array]]) -> None:
    for name, value in rows:
        is_reserved = name.startswith(PADDING) or name == "__metadata__"
        if value.dtype not in _NAMES or is_reserved:
            raise ModelFileError(
                f"weight {name!r} of {value.dtype} cannot be put into a bundle"
            )


def _write_file(path: Path, data: bytes) -> FileRecord:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256(data)
    return FileRecord(len(data), digest.hexdigest())


def _write_weights(
    path: Path, rows: list[tuple[str, mx.array]]
) -> tuple[str, FileRecord]:
    """Write the weight file and empty `rows`. Returns its header's sha256 and its record."""
    header = _header(rows)
    length = struct.pack("<Q", len(header))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _put(file, digest, length + header)
        while rows:  # drop each when it is written: evaluated arrays stay in memory
            _, value = rows.pop(0)
            data = _raw(value).data
            del value  # the bytes are a copy
            gap = bytes(_gap_after(len(data)))
            _put(file, digest, data)
            _put(file, digest, gap)
        file.flush()
        os.fsync(file.fileno())
        record = FileRecord(file.tell(), digest.hexdigest())
    return hashlib.sha256(header).hexdigest(), record


def _put(file: BinaryIO, digest: Any, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)


def _raw(value: mx.array) -> npt.NDArray[Any]:
    if value.dtype == mx.bfloat16:
        value = value.view(mx.uint16)  # numpy has no type of this name
    plain = np.ascontiguousarray(np.array(value))
    return plain.reshape(-1).view(np.uint8)


def _header(rows: list[tuple[str, mx.array]]) -> bytes:
    """The header, with padding tensors between the others.

    It is filled up so that the first tensor begins on a boundary of the file.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for number, (name, value) in enumerate(rows):
        end = offset + value.nbytes
        entries[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        gap = _gap_after(end)
        offset = end + gap
        if gap:
            entries[f"{PADDING}{number}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [end, offset],
            }
    text = json.dumps(entries, separators=(",", ":")).encode()
    length_bytes = 8  # the header's length stands before it
    return text + b" " * _gap_after(length_bytes + len(text))
