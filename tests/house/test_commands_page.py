"""docs/commands.md says what the command line takes."""

from __future__ import annotations

from rvllm_local.commands.verbs import VERBS
from scripts.commands_page import PAGE, page


def test_the_page_is_the_codes() -> None:
    assert PAGE.read_text() == page(), "run python -m scripts.commands_page"


def test_the_page_names_every_verb() -> None:
    text = PAGE.read_text()
    assert [name for name in VERBS if f"## rvllm {name}\n" not in text] == []
