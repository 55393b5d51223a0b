"""Reads GGUF files: a strict header, then tensors as numpy arrays.

Everything the header claims is checked against the file before a byte of weights is read. Format: the GGUF
specification, versions 2 and 3, little endian.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.blocks import FORMATS, BlockFormat, FloatArray
from rvllm_local.models.gguf_parts import part_paths
from rvllm_local.models.stand_in import refuse_stand_in

_MAX_TENSORS = 1 << 16  # what is plausible; the largest models have a few thousand
_MAX_KEYS = 1 << 14
_MAX_ELEMENTS = 1 << 22  # of all arrays together
_MAX_STRING = 1 << 24
_MAX_DIMENSIONS = 4
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")  # before a string's bytes
_SPLIT = "split."  # before the keys of a file that is one of several
_BIG_ENDIAN = (2 << 24, 3 << 24)  # versions 2 and 3 with their bytes the other way


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: shape in row-major order, encoding, and its bytes' place in the file.

    `part` is the file's number, for a model of several.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    offset: int
    nbytes: int
    part: int = 0


class GGUFFile:
    """An open GGUF model: `metadata` by key, `tensors` by name.

    A model of several files is opened by any of them; its keys are those of the first.
    Raises `ModelFileError` for anything malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = [_Part(each, number) for number, each in enumerate(part_paths(path))]
        self._maps = [part.data for part in parts]
        self.metadata: dict[str, Any] = parts[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        for part in parts:
            _check_place(part, len(parts))
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise ModelFileError(
                        f"{part.path}: tensor {name!r:.80} is in another part as well"
                    )
                self.tensors[name] = info
        count = self.metadata.get(f"{_SPLIT}tensors.count")
        if count is not None and count != len(self.tensors):
            raise ModelFileError(
                f"{path}: key {_SPLIT + 'tensors.count'!r} is {count!r:.20}, and its "
                f"{len(parts)} parts have {len(self.tensors)} tensors"
            )

    def read(self, name: str) -> FloatArray:
        """A tensor as float32, in its row-major shape."""
        info = self.info(name)
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # whether all are numbers is seen to when all are loaded
            return info.format.decode(self.read_blocks(name)).reshape(info.shape)

    def read_blocks(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's encoded blocks, `[number, bytes of a block]`; a view of the file."""
        info = self.info(name)
        raw = np.frombuffer(
            self._maps[info.part], np.uint8, count=info.nbytes, offset=info.offset
        )
        return raw.reshape(-1, info.format.size)

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor. Raises `ModelFileError` if there is none of that name."""
        if name not in self.tensors:
            raise ModelFileError(f"{self.path}: tensor {name!r:.80} is missing")
        return self.tensors[name]


class _Part:
    """One file: its bytes, keys and tensors."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be read as GGUF: {error}") from error
        refuse_stand_in(path)
        reader = _Reader(path, self.data, number)
        num_tensors = reader.preamble()
        self.metadata = reader.metadata()
        self.tensors = reader.tensor_table(num_tensors, self.metadata)


def _check_place(part: _Part, count: int) -> None:
    """Raise `ModelFileError` where a file's keys and its name disagree on its place."""
    stated = part.metadata.get(f"{_SPLIT}count", count)
    number = part.metadata.get(f"{_SPLIT}no", part.number)
    if stated == 0 and count == 1:
        return
    if stated != count:
        raise ModelFileError(
            f"{part.path}: key {_SPLIT + 'count'!r} says that it is one of {stated} "
            f"parts, and its name that it is one of {count}; name them as in "
            "model-00001-of-00003.gguf, in one folder"
        )
    if number != part.number:
        raise ModelFileError(
            f"{part.path}: key {_SPLIT + 'no'!r} says that it is part {number}, counted "
            f"from 0, and its name that it is part {part.number}"
        )


class _Reader:
    """A cursor over the header that never reads past the end."""

    def __init__(self, path: Path, data: mmap.mmap, part: int) -> None:
        self._path, self._data, self._at = path, data, 0
        self._part = part
        self._num_keys = self._num_elements = 0

    def fail(self, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self._path}: {what} (at byte {self._at}); the file is corrupt or cut, fetch it again"
        )

    def preamble(self) -> int:
        if self._bytes(4) != b"GGUF":
            raise self.fail("it does not begin with GGUF")
        version = self._scalar("I")
        if version in _BIG_ENDIAN:
            raise ModelFileError(
                f"{self._path}: it is a big-endian GGUF file, which is not read here; "
                "fetch the little-endian one, or turn it with gguf's "
                "`gguf-convert-endian FILE little`"
            )
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version} is not 2 or 3")
        num_tensors = self._count("tensor", _MAX_TENSORS)
        self._num_keys = self._count("key", _MAX_KEYS)
        return num_tensors

    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(self._num_keys):
            key = self._string()
            if key in metadata:
                raise self.fail(f"key {key!r:.80} appears twice")
            kind = self._scalar("I")
            metadata[key] = self._value(kind)
        return metadata

    def tensor_table(
        self, num_tensors: int, metadata: dict[str, Any]
    ) -> dict[str, TensorInfo]:
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or alignment <= 0
            or alignment > 1 << 20
            or alignment & (alignment - 1)
        ):
            raise self.fail(f"alignment {alignment!r:.80} is not a power of two")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, block_format, offset in entries:
            if name in tensors:
                raise self.fail(f"tensor {name!r:.80} appears twice")
            if offset % alignment:
                raise self.fail(
                    f"tensor {name!r:.80} is not aligned to {alignment} bytes"
                )
            elements = int(np.prod(shape, dtype=object))
            if elements == 0 or shape[-1] % block_format.elements:
                raise self.fail(
                    f"tensor {name!r:.80} has shape {shape}, which {block_format.name} cannot hold"
                )
            nbytes = elements // block_format.elements * block_format.size
            if base + offset + nbytes > len(self._data):
                raise self.fail(
                    f"tensor {name!r:.80} reaches byte {base + offset + nbytes} of {len(self._data)}"
                )
            tensors[name] = TensorInfo(
                name, shape, block_format, base + offset, nbytes, self._part
            )
        self._check_overlap(sorted(tensors.values(), key=lambda info: info.offset))
        return tensors

    def _check_overlap(self, ordered: list[TensorInfo]) -> None:
        for before, after in itertools.pairwise(ordered):
            if before.offset + before.nbytes > after.offset:
                raise self.fail(
                    f"tensors {before.name!r:.80} and {after.name!r:.80} overlap"
                )

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], BlockFormat, int]:
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.fail(f"tensor {name!r:.80} has {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        kind = self._scalar("I")
        if kind not in FORMATS:
            names = [block_format.name for block_format in FORMATS.values()]
            supported = ", ".join(names)
            raise UnsupportedModelError(
                f"{self._path}: tensor {name!r:.80} has encoding {kind}; supported are "
                f"{supported}"
            )
        return name, shape, FORMATS[kind], self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self.fail(f"value type {kind} is unknown")
        element = self._scalar("I")
        count = self._count("array element", _MAX_ELEMENTS - self._num_elements)
        self._num_elements += count
        if element == _ARRAY:
            raise self.fail("an array of arrays is not supported")
        if element in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[element])
            return list(
                struct.unpack(
                    f"<{count}{_SCALARS[element]}", self._bytes(count * width)
                )
            )
        if element == _STRING:
            return self._strings(count)
        return [self._value(element) for _ in range(count)]

    def _count(self, what: str, largest: int) -> int:
        count: int = self._scalar("Q")
        if count > largest:
            raise self.fail(f"a {what} count of {count} is not plausible")
        return count

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > _MAX_STRING:
            raise self.fail(f"a string of {length} bytes is not plausible")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("a string is not UTF-8") from error

    def _strings(self, count: int) -> list[str]:
        """Many strings; where one is amiss, `_string` says what."""
        texts: list[str] = []
        data, start = self._data, self._at
        try:
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, start)
                end = start + 8 + length
                if length > _MAX_STRING or end > len(data):
                    break
                texts.append(data[start + 8 : end].decode("utf-8"))
                start = end
        except (UnicodeDecodeError, struct.error):
            pass
        self._at = start
        while len(texts) < count:
            texts.append(self._string())
        return texts

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self.fail(
                f"{count} bytes are wanted and {len(self._data) - self._at} are left"
            )
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece
