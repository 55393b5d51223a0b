"""Times a launch on a busy device, and what a plain copy moves a second."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np


def seconds(
    build: Callable[[], mx.array],
    calls: int,
    rounds: int = 5,
) -> float:
    """Median time of one call while the device is busy: what `calls` more of them take after the first `calls`.

    The difference leaves out what the host needs before the device has anything to do.
    """
    differences = []
    for _ in range(rounds):
        taken = []
        for count in (calls, 2 * calls):
            outputs = [build() for _ in range(count)]
            mx.synchronize()
            start = time.perf_counter()
            mx.eval(outputs)
            mx.synchronize()
            taken.append(time.perf_counter() - start)
        differences.append((taken[1] - taken[0]) / calls)
    return statistics.median(differences)


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written a second by a plain pass over `nbytes`: on a CPU a copy on all of its cores."""
    if mx.default_device() == mx.Device(mx.cpu):
        return _host_copy_bandwidth(nbytes)
    source = mx.random.uniform(shape=(nbytes // 4,))
    mx.eval(source)
    return 2 * source.nbytes / seconds(lambda: mx.abs(source), 8)


def _host_copy_bandwidth(nbytes: int) -> float:
    """The destination is written before: new memory would cost a page fault for each page."""
    source, target = np.zeros(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    source[:] = 1
    cores = os.cpu_count() or 1
    parts = list(
        zip(np.array_split(target, cores), np.array_split(source, cores), strict=True)
    )
    taken = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            taken.append(time.perf_counter() - began)
    return 2 * nbytes / statistics.median(taken)
