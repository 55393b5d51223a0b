"""The list of models: what the server has, what can be fetched, and what fits this machine."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.tui.screens.dialogs import Choice, Pick
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.status import short_bytes, short_count


class ModelsScreen(Pick):
    """Answers with the id of the chosen model."""

    def __init__(
        self,
        models: Sequence[ModelInfo],
        present: str,
    ) -> None:
        choices = []
        for info in models:
            sign = "● " if info.id == present else ""
            choices.append(Choice(info.id, f"{sign}{info.id}", model_note(info)))
        note = (
            "● is in use   Enter chooses   Esc closes"
            if models
            else "This server has named no models."
        )
        super().__init__("Models", choices, note)


def model_note(model: ModelInfo) -> str:
    """What is known of a model, in a line."""
    parts = []
    if model.parameters:
        parts.append(model.parameters)
    if model.context_length:
        parts.append(f"ctx {short_count(model.context_length)}")
    if model.size:
        parts.append(f"{short_bytes(model.size)} GB")
    if model.fits is not None:
        parts.append("fits" if model.fits else _needs(model))
    if not model.installed:
        parts.append("to be fetched")
    parts += model.abilities
    parts += [text for text in (model.license, model.note) if text]
    return " · ".join(parts)


def _needs(model: ModelInfo) -> str:
    """Why a model does not fit."""
    if model.needed is None:
        return "does not fit this machine"
    return f"does not fit: needs {short_bytes(model.needed)} GB here"
