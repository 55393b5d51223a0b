"""Notes how long products took on this machine, so that no later start times them again.

A note is of a device, a version of MLX, and the kernels' texts: under other ones all is
timed anew. What is noted are seconds, never that a kernel is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from rvllm_local.models.startup_notes import read_note, write_note

Times = dict[int, tuple[float, ...]]  # by rows: each kernel's seconds, MLX's last


@dataclass(frozen=True, slots=True)
class ChoiceNotes:
    """The notes of one machine."""

    machine: str
    cache_dir: Path | None = None

    def read(self, subject: Sequence[object]) -> Times:
        """The seconds by rows that an earlier start noted; empty if none did."""
        note = read_note(self._key(subject), self.cache_dir)
        if not isinstance(note, list):
            return {}
        times: Times = {}
        for entry in note:
            if not _is_entry(entry):
                return {}
            rows, seconds = entry
            times[rows] = tuple(seconds)
        return times

    def write(
        self, subject: Sequence[object], times: Mapping[int, Sequence[float]]
    ) -> None:
        """Note the seconds. Failing to costs only time."""
        entries = [[rows, list(seconds)] for rows, seconds in times.items()]
        write_note(self._key(subject), entries, self.cache_dir)

    def _key(self, subject: Sequence[object]) -> str:
        return f"products {self.machine} {subject!r}"


def notes_here(cache_dir: Path | None) -> ChoiceNotes:
    """The notes of this machine's device."""
    info = mx.device_info()
    version = vars(mx)["__version__"]
    machine = f"{info.get('device_name')} {info.get('architecture')} mlx {version}"
    return ChoiceNotes(machine, cache_dir)


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    rows, seconds = entry
    if type(rows) is not int or not isinstance(seconds, list):
        return False
    return all(isinstance(value, float) and value > 0 for value in seconds)
