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
        """Seconds that the thread that waited longest was ready to run and did not, since the last call."""
        before, self._known = self._known, self._read()
        if before is None:
            return 0.0
        return (
            max(
                (
                    waited - before.get(task, waited)
                    for task, waited in self._known.items()
                ),
                default=0,
            )
            / 1e9
        )

    def _read(self) -> dict[str, int]:
        """Nanoseconds by thread; the second number of its `schedstat`."""
        found: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for task in self._tasks.iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found[task.name] = int(
                        (task / "schedstat").read_text(encoding="ascii").split()[1]
                    )
        return found
