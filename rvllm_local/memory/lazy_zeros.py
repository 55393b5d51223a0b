"""Large arrays of zeros whose memory becomes resident when it is first written.

That is so on a Linux CPU. `mx.zeros` writes every page, which takes time and resident
memory for blocks that nobody uses yet. Knows nothing of what the arrays are for.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import mmap
import struct
import sys
from typing import BinaryIO, cast

import mlx.core as mx

_MADV_DONTNEED = 4
_NAMES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.int8: "I8"}


def lazy_zeros(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An evaluated array of zeros.

    On a Linux CPU only pages that are written to become resident.
    """
    is_on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if sys.platform == "linux" and is_on_cpu and dtype in _NAMES:
        array = _loaded_zeros(shape, dtype)
    else:
        array = mx.zeros(shape, dtype=dtype)
    mx.eval(array)
    return array


def _loaded_zeros(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """MLX allocates an array that it loads from a file object, and the object fills it."""
    file = cast(BinaryIO, _Zeros(shape, dtype))
    loaded = mx.load(file, format="safetensors")
    assert isinstance(loaded, dict)
    return loaded["zeros"]


class _Zeros(io.RawIOBase):
    """Reads as a safetensors file of one array.

    The array's data is zeroed where it lies and not copied.
    """

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        size = math.prod(shape) * dtype.size
        row = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]}
        header = json.dumps({"zeros": row}).encode()
        self._header = struct.pack("<Q", len(header)) + header
        self._size = len(self._header) + size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._size,
        }
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self._position
        count = min(len(buffer), self._size - start)
        head = self._header[start : start + count]
        buffer[: len(head)] = head
        _clear(buffer[len(head) : count])
        self._position += count
        return count


def _clear(buffer: memoryview) -> None:
    """Zero private memory.

    Whole pages are given back to the system, which hands out zeroed ones on use.
    """
    size = len(buffer)
    if size == 0:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    first_page = min(-address % mmap.PAGESIZE, size)
    num_pages = (size - first_page) // mmap.PAGESIZE
    end_page = first_page + num_pages * mmap.PAGESIZE
    if num_pages and _give_back(address + first_page, end_page - first_page):
        _write_zeros(buffer[:first_page])
        _write_zeros(buffer[end_page:])
    else:
        _write_zeros(buffer)


def _give_back(address: int, size: int) -> bool:
    """Give whole pages back to the system. False if it takes none."""
    status: int = ctypes.CDLL(None).madvise(
        ctypes.c_void_p(address),
        ctypes.c_size_t(size),
        _MADV_DONTNEED,
    )
    return status == 0


def _write_zeros(buffer: memoryview) -> None:
    buffer[:] = bytes(len(buffer))
