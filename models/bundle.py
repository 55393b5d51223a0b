"""The project's own model format: one directory whose weights can be used where they lie.

Writes bundles and opens them. The weights are one safetensors file whose tensors begin on 16 KiB boundaries, which
Metal adopts from the mapped file without a copy; elsewhere each tensor is read once, when it is needed.
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


def open_bundle(
    folder: Path,
    *,
    verify: bool = False,
    progress: Progress = silent,
    cache_dir: Path | None = None,
) -> Manifest:
    """Check a bundle and return its manifest. Raises `ModelFileError` for any changed byte.

    Manifest, header and all small files are checked every time; the weights' own checksum when the file is new
    here or has been written since, and always with `verify`.
    """
    manifest = read_manifest(folder)
    check_small_files(folder, manifest)
    weights = folder / WEIGHTS
    check_safetensors(weights)
    _, header = read_header(weights)
    require_digest(weights, hashlib.sha256(header).hexdigest(), manifest.header_sha256)
    stamped = StampedFiles([weights], cache_dir)
    fact = f"sha256 {manifest.weights.sha256}"
    if verify or not stamped.is_known(fact):
        progress(f"checking {weights} ({manifest.weights.size / 1e6:.0f} MB)")
        require_digest(weights, file_sha256(weights), manifest.weights.sha256)
        stamped.note(fact)
    return manifest


def bundle_weights(folder: Path) -> dict[str, mx.array]:
    """The weights of a bundle that was opened: mapped on Metal, otherwise read when they are evaluated."""
    path = folder / WEIGHTS
    tensors = {
        name: row
        for name, row in read_header(path)[0].items()
        if not name.startswith(PADDING)
    }
    for name, row in tensors.items():
        if row.dtype not in _DTYPES or row.start % ALIGNMENT:
            raise ModelFileError(
                f"{path}: tensor {name!r:.80} of {row.dtype} at byte {row.start} is not a bundle's"
            )
    if mx.metal.is_available() and (mapped := _mapped(path, tensors)) is not None:
        return mapped
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return {name: loaded[name] for name in tensors}


def _mapped(
    path: Path, tensors: Mapping[str, StoredTensor]
) -> dict[str, mx.array] | None:
    """Arrays over the mapped file; None where MLX would copy."""
    with path.open("rb") as file:
        memory = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_COPY
        )  # private: nothing reaches the file
    try:
        return {name: _adopt(memory, row) for name, row in tensors.items()}
    except (ValueError, TypeError):
        return None


def _adopt(memory: mmap.mmap, row: StoredTensor) -> mx.array:
    dtype, numpy_dtype = _DTYPES[row.dtype]
    count = (row.stop - row.start) // np.dtype(numpy_dtype).itemsize
    view = np.frombuffer(
        memory, dtype=numpy_dtype, count=count, offset=row.start
    ).reshape(row.shape)
    array = mx.asarray(view, copy=False)
    return array.view(dtype) if array.dtype != dtype else array


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
    """Write a bundle: absent or complete. `files` are the small files by name; `weights` are evaluated
    one by one and dropped. Raises `DownloadError` if there is no room, `ModelFileError` if the target exists.
    """
    target = target.resolve()
    rows = sorted(weights, key=lambda row: row[0])
    if target.exists():
        raise ModelFileError(
            f"{target} exists already; choose another place or remove it"
        )
    _check_names(rows)
    size = sum(-(-value.nbytes // ALIGNMENT) * ALIGNMENT for _, value in rows)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size + (64 << 20):
            raise DownloadError(
                f"the bundle needs {size} bytes in {target.parent}; {free} are free"
            )
        with staging(target.parent) as draft:
            progress(f"writing {size / 1e6:.0f} MB of weights")
            folder = draft / "bundle"
            folder.mkdir()
            header_sha256, record = _write_weights(folder / WEIGHTS, rows)
            records = {
                name: _write_file(folder / name, data) for name, data in files.items()
            }
            manifest = Manifest(name, record, header_sha256, records, parsers, recipe)
            _write_file(folder / MANIFEST, manifest.to_bytes())
            sync_folder(folder)
            folder.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        raise DownloadError(
            f"the bundle could not be written to {target}: {error}"
        ) from error
    return manifest


def _check_names(rows: list[tuple[str, mx.array]]) -> None:
    for name, value in rows:
        if (
            value.dtype not in _NAMES
            or name.startswith(PADDING)
            or name == "__metadata__"
        ):
            raise ModelFileError(
                f"weight {name!r} of {value.dtype} cannot be put into a bundle"
            )


def _write_file(path: Path, data: bytes) -> FileRecord:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def _write_weights(
    path: Path, rows: list[tuple[str, mx.array]]
) -> tuple[str, FileRecord]:
    """Write the weight file, emptying `rows`; returns its header's sha256 and its own record."""
    header = _header(rows)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _put(file, digest, struct.pack("<Q", len(header)) + header)
        while rows:  # drop each when it is written: evaluated arrays stay in memory
            data = _raw(rows.pop(0)[1]).data
            _put(file, digest, data)
            _put(file, digest, bytes(-len(data) % ALIGNMENT))
        file.flush()
        os.fsync(file.fileno())
        return hashlib.sha256(header).hexdigest(), FileRecord(
            file.tell(), digest.hexdigest()
        )


def _put(file: BinaryIO, digest: Any, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)


def _raw(value: mx.array) -> npt.NDArray[Any]:
    plain = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
    return np.ascontiguousarray(np.array(plain)).reshape(-1).view(np.uint8)


def _header(rows: list[tuple[str, mx.array]]) -> bytes:
    """The header with padding tensors between, itself filled up so that the first tensor begins on a boundary."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    place = 0
    for number, (name, value) in enumerate(rows):
        entries[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [place, place + value.nbytes],
        }
        place += value.nbytes
        if gap := -place % ALIGNMENT:
            entries[f"{PADDING}{number}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [place, place + gap],
            }
            place += gap
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % ALIGNMENT)
