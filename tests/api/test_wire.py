"""What goes over the wire stays as it was recorded, byte for byte.

A change that is meant is recorded with `python -m tests.support.wire`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import served
from tests.support.wire import RECORDED, open_scripted, record, steps

EXPECTED = json.loads((RECORDED / "wire.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers(tiny: Path) -> Iterator[dict[str, Any]]:
    """What the server answers to all steps, by the step's name."""
    with served({"tiny": tiny}, opener=open_scripted) as running:
        rows = record(f"http://127.0.0.1:{running.port}")
    yield {row["name"]: row for row in rows}


def test_every_step_is_recorded() -> None:
    assert [row["name"] for row in EXPECTED] == [step.name for step in steps()]


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda row: row["name"])
def test_an_answer_is_as_recorded(
    expected: dict[str, Any], answers: dict[str, Any]
) -> None:
    assert answers[expected["name"]] == expected
