"""How the chat is started, for the app and the plain mode alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvllm_local.tui.settings import ChatSettings
from rvllm_local.tui.themes import DEFAULT_THEME


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the command line and the settings decide.

    `history=None` keeps nothing; `resume` opens a chat's id, or the last for "last".
    `prompt` is sent at once; `params` are sampling parameters of the new chat.
    """

    history: Path | None = None
    model: str | None = None
    system: str = ""
    is_temporary: bool = False
    resume: str | None = None
    theme: str | None = None
    settings: ChatSettings = field(default_factory=ChatSettings)
    params: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    context: str = ""  # what came on standard input beside the prompt
    is_json: bool = False
    default_theme: str = DEFAULT_THEME  # where none is chosen
