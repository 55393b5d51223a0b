"""Memory and CPU time of a process and all below it: from /proc where there is one, else from `ps`."""

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
    """`cpu_s` is the processor time it has had, 0 where that is not known."""

    pid: int
    parent: int
    resident: int
    cpu_s: float = 0.0


def check_pid(pid: int) -> None:
    """Raises `ConfigError` for a process that is not there."""
    if resident(pid) <= 0:
        raise ConfigError(
            f"there is no process {pid} whose memory could be read; give --pid of the server"
        )


def resident(pid: int) -> int:
    """Bytes, shared pages counted once a process; 0 once it has ended."""
    return sum(process.resident for process in tree(pid))


def tree(pid: int) -> Iterator[Process]:
    """A process and all below it."""
    processes = {
        process.pid: process
        for process in (_from_proc() if sys.platform == "linux" else _from_ps())
    }
    children = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
    left = [pid]
    while left:
        number = left.pop()
        if number in processes:
            yield processes[number]
            left.extend(children[number])


class Bystanders:
    """How much of the machine others took while a server was measured; only on Linux, where it can be known."""

    def __init__(self, pid: int) -> None:
        self._pid, self._began = pid, time.monotonic()
        self._before = self._others()

    def share(self) -> float | None:
        """Of all cores, since this was made, without the server, and without this process; None if unknown."""
        after, cores = self._others(), os.cpu_count() or 1
        if self._before is None or after is None:
            return None
        return max(0.0, after - self._before) / (time.monotonic() - self._began) / cores

    def _others(self) -> float | None:
        """Seconds of all cores that neither the server nor this process has had."""
        if sys.platform != "linux":
            return None
        fields = (
            Path("/proc/stat")
            .read_text(encoding="utf-8")
            .split("\n", 1)[0]
            .split()[1:9]
        )
        idle, waiting = 3, 4
        busy = sum(
            int(value)
            for index, value in enumerate(fields)
            if index not in (idle, waiting)
        )
        watched = (
            sum(process.cpu_s for process in tree(self._pid)) + time.process_time()
        )
        return busy / os.sysconf("SC_CLK_TCK") - watched


def _from_proc() -> Iterator[Process]:
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # As bytes: a name may be cut within a letter.
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        cpu = (int(fields[11]) + int(fields[12])) / tick
        yield Process(int(folder.name), int(fields[1]), int(fields[21]) * page, cpu)


def _from_ps() -> Iterator[Process]:
    done = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        pid, parent, kilobytes = line.split()
        yield Process(int(pid), int(parent), int(kilobytes) * 1024)
