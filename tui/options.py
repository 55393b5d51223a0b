"""How the chat is started: what the command line and the settings decide, for the app and the plain mode alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rvllm_local.tui.settings import ChatSettings


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`history=None` keeps nothing; `resume` opens a chat's id, or the last for "last"."""

    history: Path | None = None
    model: str | None = None
    system: str = ""
    is_temporary: bool = False
    resume: str | None = None
    theme: str | None = None
    settings: ChatSettings = field(default_factory=ChatSettings)
