"""Resident memory of a process and all below it: from /proc where there is one, else from `ps`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rvllm_local.errors import ConfigError


def check_pid(pid: int) -> None:
    """Raises `ConfigError` for a process that is not there."""
    if resident(pid) <= 0:
        raise ConfigError(f"there is no process {pid} whose memory could be read; give --pid of the server")


def resident(pid: int) -> int:
    """Bytes, shared pages counted once a process; 0 once it has ended."""
    rows = {row[0]: row for row in (_from_proc() if sys.platform == "linux" else _from_ps())}
    children = defaultdict(list)
    for number, parent, _ in rows.values():
        children[parent].append(number)
    total, left = 0, [pid]
    while left:
        number = left.pop()
        if number in rows:
            total += rows[number][2]
            left.extend(children[number])
    return total


def _from_proc() -> Iterator[tuple[int, int, int]]:
    """(pid, parent's pid, resident bytes) of every process."""
    page = os.sysconf("SC_PAGE_SIZE")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        yield int(folder.name), int(fields[1]), int(fields[21]) * page


def _from_ps() -> Iterator[tuple[int, int, int]]:
    done = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        pid, parent, kilobytes = line.split()
        yield int(pid), int(parent), int(kilobytes) * 1024
