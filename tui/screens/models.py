"""The list of models: what the server has, what can be fetched, and what fits here."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.tui.columns import aligned
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.screens.dialogs import Choice, Pick
from rvllm_local.tui.state import ModelInfo
from rvllm_local.tui.status import short_bytes, short_count

_NUMBERS = (0, 1)  # columns of parameters and bytes


class ModelsScreen(Pick):
    """Answers with the id of the chosen model."""

    WIDTH = 104

    def __init__(
        self,
        models: Sequence[ModelInfo],
        present: str,
    ) -> None:
        note = "This server has named no models."
        if models:
            note = "● is in use   Enter chooses   Esc closes"
        super().__init__("Models", model_choices(models, present), note)
        self.add_class("of-models")


def model_choices(models: Sequence[ModelInfo], present: str = "") -> list[Choice]:
    """The rows of a list of models, with what is known of each in columns."""
    notes = aligned([_cells(model) for model in models], _NUMBERS)
    choices = []
    for model, note in zip(models, notes, strict=True):
        sign = "● " if model.id == present else "  "
        choices.append(Choice(model.id, f"{sign}{model.id}", note))
    return choices


def _cells(model: ModelInfo) -> list[str]:
    """Parameters, size, whether it fits and is here, abilities, the rest."""
    context = f"ctx {short_count(model.context_length)}" if model.context_length else ""
    facts = (_fit(model), _place(model), context)
    parts = [text for text in (model.license, model.note) if text]
    return [
        clean_line(model.parameters, 8),
        f"{short_bytes(model.size)} GB" if model.size else "",
        ", ".join(text for text in facts if text),
        clean_line(" ".join(model.abilities), 20),
        clean_line(" · ".join(parts), 60),
    ]


def _fit(model: ModelInfo) -> str:
    """Whether the model fits, and what it would need."""
    if model.fits is None:
        return ""
    if model.fits:
        return "fits"
    if model.needed is None:
        return "does not fit"
    needed = short_bytes(model.needed)
    if model.room is None:
        return f"needs {needed} GB"
    return f"needs {needed} of {short_bytes(model.room)} GB"


def _place(model: ModelInfo) -> str:
    """Where the model is: on this machine or to be fetched; nothing while served.

    For one that does not fit that does not matter.
    """
    if model.served or model.fits is False:
        return ""
    return "here" if model.installed else "to fetch"
