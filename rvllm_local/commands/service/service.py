"""`rvllm service`: the system starts the server, and starts it again when it falls."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rvllm_local.commands.any_order import AnyOrderParser
from rvllm_local.commands.arguments import serve_arguments
from rvllm_local.commands.service.definition import Service
from rvllm_local.commands.service.managers import Command, Manager, manager_of
from rvllm_local.errors import ConfigError, EngineError
from rvllm_local.memory.block_file import write_private

_LIMIT_S = 120.0  # a manager waits for the end of what it stops
_KEY_VARIABLE = "RVLLM_API_KEY"
Run = Callable[[Command], "Ran"]
Ran = tuple[int, str]  # a command's exit status, and what it printed


def service(arguments: argparse.Namespace) -> int:
    """Do what is asked with the service; exit status 1 where it does not run."""
    return ServiceControl(manager_of(), run_command).act(arguments)


def run_command(command: Command) -> Ran:
    """Run a manager's command. Raises `ConfigError` where there is none."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{command[0]} is not on this machine; start rvllm serve from what starts "
            "programs here"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{' '.join(command)} did not end within {_LIMIT_S:g} s"
        ) from error
    return done.returncode, done.stdout.strip()


class ServiceControl:
    """Acts on the service through one manager. `run` runs the manager's commands."""

    def __init__(self, manager: Manager, run: Run) -> None:
        self._manager = manager
        self._run = run

    def act(self, arguments: argparse.Namespace) -> int:
        """Do one action, and return the exit status."""
        match arguments.action:
            case "install":
                return self._install([*arguments.models, *arguments.rest])
            case "uninstall":
                return self._uninstall()
            case "status":
                return self._status()
            case _:
                return self._logs()

    def _install(self, words: Sequence[str]) -> int:
        manager = self._manager
        made = service_of(words, manager.log)
        definition = manager.define(made)
        if manager.path.exists():  # the one that runs has other settings
            for command in manager.end:
                self._run(command)
        for folder in (manager.path.parent, made.errors.parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_private(manager.path, definition)
        print(f"wrote {manager.path}")
        for command in manager.begin:
            status, text = self._run(command)
            if status:
                raise EngineError(
                    f"{manager.name} did not start the service: {text or status}. To "
                    f"try again: {' '.join(command)}"
                )
        print(f"{manager.name} runs the server; {manager.advice}")
        return 0

    def _uninstall(self) -> int:
        manager = self._manager
        if not manager.path.exists():
            print("no service is installed")
            return 0
        for command in manager.end:
            self._run(command)  # it may not be running
        manager.path.unlink()
        for command in manager.after_end:
            self._run(command)
        print(f"removed {manager.path}")
        return 0

    def _status(self) -> int:
        manager = self._manager
        if not manager.path.exists():
            print("no service is installed; install one with: rvllm service install")
            return 1
        status, text = self._run(manager.status)
        is_running = status == 0 and manager.running_word in text
        print(f"{manager.path}: {'runs' if is_running else 'does not run'}")
        print(text)
        return 0 if is_running else 1

    def _logs(self) -> int:
        status, text = self._run(self._manager.show_log)
        print(text)
        return 1 if status else 0


def service_of(words: Sequence[str], log: Path | None) -> Service:
    """The service of `rvllm serve` with these models and flags.

    Variables of this program go with it, but for the key: others may read a service's
    definition. Raises `ConfigError` for what the server would refuse.
    """
    from rvllm_local.commands.serve import settings_from

    words = [_absolute(word) for word in words]
    parser = AnyOrderParser(prog="rvllm service install")
    serve_arguments(parser)
    arguments = parser.parse_args(words)
    environment = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith("RVLLM_") and name != _KEY_VARIABLE:
            environment[name] = value
    settings = settings_from(arguments, environment)
    command = [sys.executable, "-m", "rvllm_local.cli", "serve", *words]
    errors = Path(os.devnull)
    if log is not None:
        command += ["--log-file", str(log)]
        errors = log.with_name("errors.log")
    return Service(command, settings.drain_s, errors, environment)


def _absolute(word: str) -> str:
    """A path from its root on: a service does not start in this folder."""
    path = Path(word)
    is_path = os.sep in word or path.suffix == ".gguf"
    if is_path and not word.startswith("-") and path.exists():
        return str(path.absolute())
    return word
