"""How long a process has waited for a processor.

So one that gets none is not taken for one that hangs. Linux tells the wait of each
thread; elsewhere it counts as nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


class CpuWait:
    """The wait of one process's threads, as the scheduler counts it."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._tasks = proc / str(pid) / "task"
        self._last: dict[str, int] | None = None

    def forget(self) -> None:
        """The next call measures from its own time on."""
        self._last = None

    def since_last(self) -> float:
        """Seconds that the thread that waited longest was ready to run and did not.

        Counts from the last call; the first call gives 0.
        """
        before = self._last
        now = self._read()
        self._last = now
        if before is None:
            return 0.0
        longest = 0
        for task, waited in now.items():
            since = waited - before.get(task, waited)
            longest = max(longest, since)
        return longest / 1e9

    def _read(self) -> dict[str, int]:
        """Nanoseconds by thread; the second number of its `schedstat`."""
        waits: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for task in self._tasks.iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    text = (task / "schedstat").read_text(encoding="ascii")
                    waits[task.name] = int(text.split()[1])
        return waits
