"""The folder of an agent's own in which its settings for this server are kept.

The user's configuration of the agent is elsewhere, and is neither read nor written.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs

from rvllm_local.commands.launch.agents import Agent, Settings
from rvllm_local.memory.block_file import write_private


def profile_folder(name: str) -> Path:
    """Where the profile of an agent lies."""
    data = platformdirs.user_data_dir("rvllm", appauthor=False)
    return Path(data, "launch", name)


def write_profile(agent: Agent, settings: Settings) -> None:
    """Write the files of a profile; what else the agent keeps there stays."""
    folder = Path(settings.profile)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in agent.files_with(settings).items():
        _replace(folder / name, text)
    for name, text in agent.first_files.items():
        if not (folder / name).exists():
            _replace(folder / name, text)
    if agent.hidden:
        _link_all_but(agent.hidden, folder / "config")


def _link_all_but(hidden: tuple[str, ...], folder: Path) -> None:
    """Show the user's configurations of other programs, which the agent may run."""
    folder.mkdir(mode=0o700, exist_ok=True)
    of_user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for link in folder.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    if not of_user.is_dir() or of_user.samefile(folder):
        return
    for path in of_user.iterdir():
        if path.name not in hidden:
            with contextlib.suppress(FileExistsError):
                (folder / path.name).symlink_to(path)


def _replace(path: Path, text: str) -> None:
    """Write a file at once: another session may be reading it. It may hold a key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, text.encode())
