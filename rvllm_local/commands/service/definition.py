"""What a system's service manager is told: launchd's property list, systemd's unit."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvllm_local.errors import ConfigError

LABEL = "local.rvllm.serve"  # launchd's name of the service
UNIT = "rvllm.service"  # systemd's
REFUSED = 2  # the server's status for a setting that can never work
_LEAST_S = 1  # between two starts
_LEAST_PAUSE_S = 0.2  # between an end and a start
_LONGEST_PAUSE_S = 60
_BESIDE_DRAIN_S = 15
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Service:
    """A command that is kept running.

    `drain_s` is what it takes to end in order. `errors` gets what it prints before its
    log is open, where the system keeps no journal.
    """

    command: Sequence[str]
    drain_s: float
    errors: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def end_s(self) -> int:
        """How long the system waits for its end."""
        return round(self.drain_s) + _BESIDE_DRAIN_S


def launchd_plist(service: Service) -> bytes:
    """The property list of a launchd agent. Raises `ConfigError`."""
    _check(service)
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(service.command),
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": _LEAST_S,
            "ExitTimeOut": service.end_s,
            "ProcessType": "Interactive",  # no lower priority: people wait for it
            "HardResourceLimits": {"Core": 0},
            "StandardOutPath": "/dev/null",
            "StandardErrorPath": str(service.errors),
        }
    )


def systemd_unit(service: Service) -> bytes:
    """The text of a user unit. Raises `ConfigError`."""
    _check(service)
    environment = []
    for name, value in service.environment.items():
        environment.append(f"Environment={_quoted(f'{name}={value}')}")
    lines = [
        "[Unit]",
        "Description=rvllm: models on this machine",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_quoted(word, is_command=True) for word in service.command)}",
        *environment,
        "Restart=on-failure",
        f"RestartPreventExitStatus={REFUSED}",
        f"RestartSec={_LEAST_PAUSE_S}",
        "RestartSteps=6",
        f"RestartMaxDelaySec={_LONGEST_PAUSE_S}",
        f"TimeoutStopSec={service.end_s}",
        "KillMode=mixed",
        "LimitCORE=0",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines).encode()


def _quoted(word: str, is_command: bool = False) -> str:
    """A word as a unit spells it. Only commands have variables, which $ begins."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if is_command:
        text = text.replace("$", "$$")
    return f'"{text}"'


def _check(service: Service) -> None:
    texts = [*service.command, *service.environment.values(), str(service.errors)]
    for text in texts:
        if _CONTROL.search(text):
            raise ConfigError(
                f"{text!r:.200} holds a control character, which a service cannot be "
                "given; leave it out"
            )
