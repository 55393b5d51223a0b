"""How long a process has waited for a processor, so that one that gets none is not taken for one that hangs.

Linux tells it for each thread; elsewhere it counts as nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


class CpuWait:
    """The wait of one process's threads, as the scheduler counts it."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._tasks = proc / str(pid) / "task"
        self._known: dict[str, int] | None = None

    def forget(self) -> None:
        """The next call measures from its own time on."""
        self._known = None

    def since_last(self) -> float:
        """Seconds that the thread that waited longest was ready to run and did not.

        Counts from the last call; the first call gives 0.
        """
        before, self._known = self._known, self._read()
        longest = 0
        for task, waited in self._known.items():
            if before is not None:
                longest = max(longest, waited - before.get(task, waited))
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
