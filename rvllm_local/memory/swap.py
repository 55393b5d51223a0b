"""The blocks of preempted sequences wait in one unlinked temporary file.

No crash leaves it behind. Knows bytes only. When the file cannot grow, blocks wait in
memory instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True, slots=True)
class Swapped:
    """One block's bytes: a range of the file, or the bytes themselves."""

    offset: int
    length: int
    held: bytes | None = None


class SwapSpace:
    """Writes, reads and frees blocks' bytes.

    The file keeps its size, and its ranges are used again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0
        # Offsets of free ranges by length; blocks of one group have one length.
        self._free: dict[int, list[int]] = {}
        self.num_blocks = 0

    def write(self, payloads: Sequence[bytes]) -> list[Swapped]:
        """Store each payload."""
        return [self._write(payload) for payload in payloads]

    def read(self, swapped: Swapped) -> bytes:
        """The bytes that were stored."""
        if swapped.held is not None:
            return swapped.held
        assert self._file is not None
        self._file.seek(swapped.offset)
        payload = self._file.read(swapped.length)
        if len(payload) != swapped.length:
            end = swapped.offset + swapped.length
            raise OSError(f"the swap file ends before offset {end}")
        return payload

    def free(self, swapped: Sequence[Swapped]) -> None:
        """Forget stored payloads."""
        for part in swapped:
            self.num_blocks -= 1
            if part.held is not None:
                continue
            offsets = self._free.setdefault(part.length, [])
            offsets.append(part.offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, payload: bytes) -> Swapped:
        self.num_blocks += 1
        length = len(payload)
        offset = self._end
        offsets = self._free.get(length)
        if offsets:
            offset = offsets.pop()
        try:
            file = self._open()
            file.seek(offset)
            if file.write(payload) != length:
                raise OSError("the disk is full")
        except OSError:
            return Swapped(0, length, payload)
        self._end = max(self._end, offset + length)
        return Swapped(offset, length)

    def _open(self) -> IO[bytes]:
        """The file, made on first use. Raises `OSError`."""
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                dir=self._folder,
                prefix="rvllm-swap-",
                buffering=0,
            )
        return self._file
