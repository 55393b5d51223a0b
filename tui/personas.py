"""Presets as personas: a name for a model, a system prompt and parameters.

Pure values. A chat does not say which preset it uses: it is the one whose values it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvllm_local.history.types import Chat
from rvllm_local.tui.sanitise import clean_line

Presets = Mapping[str, Mapping[str, Any]]
_TEXTS = ("system", "model")


def chat_values(preset: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """What of a chat a preset changes: its parameters and system prompt."""
    return {"params": _params(preset), "system": preset.get("system", chat.system)}


def persona_name(chat: Chat, presets: Presets) -> str:
    """The preset that the chat has the values of, or nothing."""
    if not chat.params and not chat.system:
        return ""
    for name, preset in presets.items():
        has_system = preset.get("system", chat.system) == chat.system
        if has_system and _params(preset) == dict(chat.params):
            return name
    return ""


def preset_note(preset: Mapping[str, Any]) -> str:
    """What a preset sets, in a line."""
    parts = []
    if preset.get("model"):
        parts.append(str(preset["model"]))
    for name, value in _params(preset).items():
        parts.append(f"{name} {value}")
    if preset.get("system"):
        parts.append(str(preset["system"]))
    return clean_line(" · ".join(parts), 90)


def _params(preset: Mapping[str, Any]) -> dict[str, Any]:
    params = {}
    for name, value in preset.items():
        if name not in _TEXTS and value is not None:
            params[name] = value
    return params
