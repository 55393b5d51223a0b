"""The service managers: where a definition lies, and the commands that act on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.commands.service.definition import (
    LABEL,
    UNIT,
    Service,
    launchd_plist,
    systemd_unit,
)
from rvllm_local.errors import ConfigError

Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Manager:
    """One system's. `begin` commands follow the writing of `path`, `end` ones go before
    its removal and `after_end` after it. `log` is a file that the service writes, where
    the system keeps no journal; `show_log` shows what there is.
    """

    name: str
    path: Path
    define: Callable[[Service], bytes]
    begin: Sequence[Command]
    end: Sequence[Command]
    after_end: Sequence[Command]
    status: Command
    running_word: str
    show_log: Command
    log: Path | None
    advice: str


def manager_of(platform: str = sys.platform, home: Path | None = None) -> Manager:
    """The manager of this system. Raises `ConfigError` where none is known."""
    home = home or Path.home()
    if platform == "darwin":
        return _launchd(home)
    if platform.startswith("linux"):
        return _systemd(home)
    raise ConfigError(
        f"services are known on macOS and on Linux with systemd, not on {platform}; "
        "start rvllm serve from what starts programs there"
    )


def _launchd(home: Path) -> Manager:
    path = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    log = home / "Library" / "Logs" / "rvllm" / "serve.log"
    domain = f"gui/{os.getuid()}"
    target = f"{domain}/{LABEL}"
    return Manager(
        name="launchd",
        path=path,
        define=launchd_plist,
        begin=(
            ("launchctl", "enable", target),
            ("launchctl", "bootstrap", domain, str(path)),
        ),
        end=(("launchctl", "bootout", target),),
        after_end=(),
        status=("launchctl", "print", target),
        running_word="state = running",
        show_log=("tail", "-n", "100", str(log)),
        log=log,
        advice="it starts when you log in",
    )


def _systemd(home: Path) -> Manager:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    control = ("systemctl", "--user")
    return Manager(
        name="systemd",
        path=config / "systemd" / "user" / UNIT,
        define=systemd_unit,
        begin=(
            (*control, "daemon-reload"),
            (*control, "enable", UNIT),
            (*control, "restart", UNIT),
        ),
        end=((*control, "disable", "--now", UNIT),),
        after_end=((*control, "daemon-reload"),),
        status=(*control, "show", "-p", "ActiveState,MainPID,NRestarts", UNIT),
        running_word="ActiveState=active",
        show_log=("journalctl", "--user", "-u", UNIT, "-n", "100", "--no-pager"),
        log=None,
        advice="it starts when you log in; to start it with the machine: loginctl "
        "enable-linger",
    )
