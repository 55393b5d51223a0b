"""Memory and CPU time of a process and all below it.

From /proc where there is one, else from `ps`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the machine."""

    pid: int
    parent: int
    resident: int  # bytes
    cpu_s: float = 0.0  # processor time that it has had; 0 where that is not known


def check_pid(pid: int) -> None:
    """Raises `ConfigError` for a process that is not there."""
    if resident(pid) <= 0:
        raise ConfigError(
            f"there is no process {pid} whose memory could be read; "
            "give --pid of the server"
        )


def resident(pid: int) -> int:
    """Bytes, shared pages counted once a process; 0 once it has ended."""
    return sum(process.resident for process in tree(pid))


def tree(pid: int) -> Iterator[Process]:
    """A process and all below it."""
    everything = _from_proc() if sys.platform == "linux" else _from_ps()
    processes = {}
    children = defaultdict(list)
    for process in everything:
        processes[process.pid] = process
        children[process.parent].append(process.pid)
    left = [pid]
    while left:
        number = left.pop()
        if number in processes:
            yield processes[number]
            left.extend(children[number])


class Bystanders:
    """How much of the machine others took while a server was measured.

    Only Linux tells it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self._before = self._others()

    def share(self) -> float | None:
        """The others' share of all cores since this was made; None if unknown.

        The others are neither the server nor this process.
        """
        after = self._others()
        if self._before is None or after is None:
            return None
        elapsed = time.monotonic() - self._began
        cores = os.cpu_count() or 1
        return max(0.0, after - self._before) / elapsed / cores

    def _others(self) -> float | None:
        """Seconds of all cores that neither the server nor this process has had."""
        if sys.platform != "linux":
            return None
        text = Path("/proc/stat").read_text(encoding="utf-8")
        all_cores = text.split("\n", 1)[0]
        ticks = [int(field) for field in all_cores.split()[1:9]]
        idle, waiting = ticks[3:5]
        busy = sum(ticks) - idle - waiting
        server = sum(process.cpu_s for process in tree(self._pid))
        watched = server + time.process_time()
        return busy / os.sysconf("SC_CLK_TCK") - watched


def _from_proc() -> Iterator[Process]:
    page = os.sysconf("SC_PAGE_SIZE")
    tick = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # As bytes: a name may be cut within a letter.
            stat = (folder / "stat").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        _, _, after_name = stat.rpartition(b")")
        fields = after_name.split()
        ticks = int(fields[11]) + int(fields[12])
        yield Process(
            pid=int(folder.name),
            parent=int(fields[1]),
            resident=int(fields[21]) * page,
            cpu_s=ticks / tick,
        )


def _from_ps() -> Iterator[Process]:
    command = ["ps", "-axo", "pid=,ppid=,rss="]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        pid, parent, kilobytes = line.split()
        yield Process(int(pid), int(parent), int(kilobytes) * 1024)
