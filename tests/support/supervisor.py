"""Does what systemd does with a unit: starts its command, and starts it again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LONG_S = 60.0


class Supervisor:
    """Runs the command of a unit's text until `stop`; a thread starts it again.

    `starts` counts, `pauses` are what lay between. Known are the settings that rvllm
    writes; another one is an error.
    """

    def __init__(self, unit: str, log: Path) -> None:
        self.settings: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        lines = unit.partition("[Service]")[2].partition("[Install]")[0]
        for line in lines.splitlines():
            name, _, value = line.partition("=")
            if name == "Environment":
                (word,) = _words(value)
                variable, _, text = word.partition("=")
                self.environment[variable] = text
            elif name:
                self.settings[name] = value
        self.command = _words(self.settings["ExecStart"].replace("$$", "$"))
        assert self.settings["Restart"] == "on-failure"
        self.pauses: list[float] = []
        self._log = log
        self._is_over = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _keep(self) -> None:
        refused = int(self.settings["RestartPreventExitStatus"])
        while not self._is_over.is_set():
            status = self.process.wait()
            self._end_group()  # systemd ends what is left of a unit
            if status in (0, refused) or self._is_over.wait(self._pause()):
                return
            self.process = self._start()

    def _pause(self) -> float:
        """Longer from one to the next, as RestartSteps says."""
        least = float(self.settings["RestartSec"])
        most = float(self.settings["RestartMaxDelaySec"])
        steps = int(self.settings["RestartSteps"])
        growth = (most / least) ** (min(len(self.pauses), steps) / steps)
        self.pauses.append(least * growth)
        return self.pauses[-1]

    def _end_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    @property
    def is_keeping(self) -> bool:
        """Whether it would start the command again."""
        return self._thread.is_alive()

    def stop(self) -> int:
        """End the command in order, and return its status."""
        self._is_over.set()
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(float(self.settings["TimeoutStopSec"]) + _LONG_S)
        finally:
            self._end_group()
            self._thread.join()


def _words(text: str) -> list[str]:
    words = []
    for match in _WORD.finditer(text):
        words.append(re.sub(r"\\(.)", r"\1", match[1]).replace("%%", "%"))
    return words


def service_processes(pid: int) -> dict[str, list[int]]:
    """The processes of a server by what they do, forks of them included."""
    kinds = {
        "engine": "clients.process.child",
        "prompts": "conversation.prompt_process",
        "inspection": "inspection_process",
    }
    below = children_of(pid)
    pids: dict[str, list[int]] = {kind: [] for kind in kinds}
    for child, command in below.items():
        for kind, module in kinds.items():
            if module in command:
                pids[kind].append(child)
    return {**pids, "server": [pid]}


def children_of(pid: int) -> dict[int, str]:
    """The processes below one, with their commands."""
    done = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True
    )
    rows = [line.split(None, 2) for line in done.stdout.splitlines()]
    commands: dict[int, str] = {}
    below = {pid}
    for _ in range(4):
        for number, parent, command in rows:
            if int(parent) in below and int(number) not in commands:
                commands[int(number)] = command
        below |= set(commands)
    return commands
