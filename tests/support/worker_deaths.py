"""Says how a worker of the suite died, below the test that it died in.

A worker that has gone takes its own words with it, and what it wrote on the terminal
lies far above the end of a run. So each has a file for what Python says of a fatal
error, and whoever started it adds the status of its process and the kernel's count of
processes that it killed for want of memory.
"""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_MOST_LINES = 14  # of the stack of the thread that failed


class WorkerDeaths:
    """A plugin of the process that starts the workers."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rvllm-workers-")
        self._killed_before = killed_for_memory()
        self._accounts: dict[str, str] = {}

    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["faults"] = str(self._file(node))

    @pytest.hookimpl(tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self._accounts[node.gateway.id] = self._account(node)

    def pytest_handlecrashitem(self, report: pytest.TestReport) -> None:
        worker = report.node.gateway.id  # type: ignore[attr-defined]
        report.longrepr = f"{report.longrepr}\n{self._accounts.get(worker, '')}"

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()

    def _file(self, node: Any) -> Path:
        return Path(self._folder.name) / f"{node.gateway.id}.txt"

    def _account(self, node: Any) -> str:
        killed = killed_for_memory() - self._killed_before
        lines = failing_lines(self._file(node))
        lines.append(f"its process {end_of(node.gateway._io.popen)}")
        lines.append(f"processes killed for want of memory since the start: {killed}")
        return "\n".join(lines)


def failing_lines(path: Path) -> list[str]:
    """The error that Python wrote of, and the stack of its thread; none if it did not."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("Current thread"):
            return [lines[0], *lines[number : number + _MOST_LINES]]
    return lines[:_MOST_LINES]


def end_of(process: subprocess.Popen[bytes]) -> str:
    """How a process ended whose pipes are closed."""
    try:
        status = process.wait(60)
    except subprocess.TimeoutExpired:
        return "closed its pipes and runs on"
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


def killed_for_memory() -> int:
    """Processes of this group that the kernel killed; 0 where it does not say."""
    try:
        text = _MEMORY_EVENTS.read_text(encoding="ascii")
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def watch(config: pytest.Config) -> None:
    """Begin to watch the workers, or in one of them, to write of what ends it."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None:
        if config.pluginmanager.hasplugin("xdist"):
            config.pluginmanager.register(WorkerDeaths())
        return
    # Never closed: it is for the last moment.
    faulthandler.enable(Path(workerinput["faults"]).open("w"))  # noqa: SIM115
