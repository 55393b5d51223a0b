"""The JSON of a benchmark: figures by run, with the machine, the versions, the date and the command behind them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rvllm_local.bench.metrics import Figure
from rvllm_local.errors import ConfigError

_FORMAT = 1
_USERINFO = re.compile(r"(https?://)[^/\s]*@", re.IGNORECASE)
_PACKAGES = ("rvllm-local", "mlx", "mlx-lm", "numpy", "httpx")


@dataclass(frozen=True, slots=True)
class Record:
    """`runs` maps a run's name, such as "bursty at 0.5/s", to its figures.

    `details` is what only people read.
    """

    kind: str
    runs: Mapping[str, Mapping[str, Figure]]
    label: str = "rvllm"
    details: Mapping[str, Any] = field(default_factory=dict)
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        runs = {
            name: {key: figure.to_json() for key, figure in run.items()}
            for name, run in self.runs.items()
        }
        value = {
            "format": _FORMAT, "kind": self.kind, "label": self.label, "machine": self.machine,
            "versions": dict(self.versions), "date": self.date, "command": self.command, "runs": runs,
            "details": dict(self.details),
        }  # fmt: skip
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def new_record(
    kind: str,
    runs: Mapping[str, Mapping[str, Figure]],
    label: str = "rvllm",
    **details: Any,
) -> Record:
    """A record of this process on this machine, now."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return Record(kind, runs, label, details, machine(), versions(), date, command())


def load(path: Path) -> Record:
    """Read a record. Raises `ConfigError` for a file that is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != _FORMAT:
            raise ValueError(
                f"format {value['format']!r}; this version reads {_FORMAT}"
            )
        runs = {
            name: {key: Figure.from_json(row) for key, row in run.items()}
            for name, run in value["runs"].items()
        }
        values = {
            name: value[name]
            for name in (
                "kind",
                "label",
                "details",
                "machine",
                "versions",
                "date",
                "command",
            )
        }
        _check_types(values)
        return Record(runs=runs, **values)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"{path} is not the JSON of a benchmark ({type(error).__name__}: {error})"
        ) from error


def _check_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, dict if name in ("details", "versions") else str):
            raise TypeError(f"{name} is {value!r}")


def check_writable(file: str | None) -> None:
    """Raises `ConfigError` if a file that is to be written at the end could not be.

    Nothing is written yet.
    """
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise ConfigError(f"{file} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{file} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{file} cannot be written: its permissions do not allow it")


def command() -> str:
    """What was typed, without the machine's own paths, and without passwords in addresses."""
    program = Path(sys.argv[0])
    name = (
        f"python benchmarks/{program.name}"
        if program.parent.name == "benchmarks"
        else program.name
    )
    words = [
        _USERINFO.sub(r"\1", word.replace(str(Path.home()), "~"))
        for word in sys.argv[1:]
    ]
    return " ".join([name, *map(shlex.quote, words)])


def machine() -> str:
    """Processor, cores in use and system."""
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    if sys.platform == "darwin":
        done = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Versions of what can matter; only those that are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
