"""Arrays of zeros that take memory only where they are written."""

from __future__ import annotations

import ctypes
import os
import sys

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.memory.lazy_zeros import lazy_zeros

on_linux_cpu = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() != mx.Device(mx.cpu),
    reason="other systems write every page",
)


def resident(array: np.ndarray) -> int:
    """Bytes of an array that are in memory, whatever else the process holds."""
    page = os.sysconf("SC_PAGESIZE")
    start = array.ctypes.data // page * page
    pages = (ctypes.c_ubyte * -(-(array.ctypes.data + array.nbytes - start) // page))()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(start, len(pages) * page, pages) == 0
    return sum(state & 1 for state in pages) * page


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int8])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 1000, 3), (7, 4096)])
def test_they_are_zero_even_where_memory_was_used_before(
    dtype: mx.Dtype, shape: tuple[int, ...]
) -> None:
    for _ in range(3):
        array = lazy_zeros(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert not mx.any(array != 0).item()
        bits = np.array(
            array.view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[dtype.size]),
            copy=False,
        )
        bits[...] = 0xFF  # what the next one finds where this one was
        assert mx.all(array != 0).item()
        del array, bits


@on_linux_cpu
def test_only_what_is_written_takes_memory() -> None:
    array = lazy_zeros((64, 2**20), mx.float32)  # 268 MB
    view = np.array(array, copy=False)
    assert resident(view) < 10**7
    view[10] = 1.0
    assert 4 * 10**6 < resident(view) < 2 * 10**7
    assert float(mx.sum(array).item()) == 2**20
