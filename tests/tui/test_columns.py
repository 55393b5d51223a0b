"""Short texts as columns."""

from __future__ import annotations

from rvllm_local.tui.columns import aligned
from rvllm_local.tui.screens.models import model_choices
from rvllm_local.tui.state import ModelInfo

GB = 10**9


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [["a", "", "9 GB"], ["日本", "", "12 GB"]]
    assert aligned(rows, {2}) == ["a      9 GB", "日本  12 GB"]


def test_models_are_listed_in_columns() -> None:
    models = [
        ModelInfo("tiny", 8192, size=GB // 10, fits=True, license="MIT"),
        ModelInfo(
            "vast",
            size=40 * GB,
            fits=False,
            served=False,
            installed=False,
            needed=41 * GB,
            room=22 * GB,
            parameters="71B",
            abilities=("tools", "thinks"),
        ),
    ]
    first, second = model_choices(models, "tiny")
    assert (first.name, second.name) == ("● tiny", "  vast")
    assert first.note == "     0.1 GB  fits, ctx 8.2k                   MIT"
    assert second.note == "71B   40 GB  needs 41 of 22 GB  tools thinks"
