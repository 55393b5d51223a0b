"""The list of models: what the server has, what can be fetched, and what fits this machine."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.tui.screens.dialogs import Choice, Pick
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.status import short_bytes, short_count


class ModelsScreen(Pick):
    """Answers with the id of the chosen model."""

    def __init__(self, models: Sequence[ModelInfo], present: str) -> None:
        choices = [
            Choice(
                one.id, f"{'● ' if one.id == present else ''}{one.id}", model_note(one)
            )
            for one in models
        ]
        note = (
            "● is in use   Enter chooses   Esc closes"
            if models
            else "This server has named no models."
        )
        super().__init__("Models", choices, note)


def model_note(model: ModelInfo) -> str:
    """What is known of a model, in a line."""
    parts = []
    if model.context_length:
        parts.append(f"ctx {short_count(model.context_length)}")
    if model.size:
        parts.append(f"{short_bytes(model.size)} GB")
    if model.fits is not None:
        parts.append("fits" if model.fits else "does not fit this machine")
    if not model.installed:
        parts.append("to be fetched")
    if model.note:
        parts.append(model.note)
    return " · ".join(parts)
