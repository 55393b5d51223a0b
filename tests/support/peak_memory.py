"""Measures how far a piece of code raised the process's resident memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


@dataclass
class Growth:
    """`peak` is in bytes, and known when the block has ended."""

    peak: int = 0


@contextlib.contextmanager
def growth() -> Iterator[Growth]:
    """The largest resident size in the block above the one at its start.

    macOS cannot forget an earlier peak: what stays below it counts as nothing there.
    """
    if _CLEAR.exists():
        _CLEAR.write_text(_RESET_PEAK)
    before, grown = _peak(), Growth()
    try:
        yield grown
    finally:
        grown.peak = _peak() - before


def _peak() -> int:
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for line in _STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "VmHWM":
            return int(rest.split()[0]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")
