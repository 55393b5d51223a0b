"""What all tests of the engine share."""

from __future__ import annotations

import pytest

from rvllm_local.text.grammar import timed_compilation


@pytest.fixture(autouse=True)
def _patient_with_grammars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary grammars are compiled, however busy the machine is.

    A server refuses one that takes 1.5 s, as a grammar of milliseconds may where a dozen
    others work. Tests of that limit set it themselves (`tests/text/grammar`).
    """
    monkeypatch.setattr(timed_compilation, "COMPILE_SECONDS", 60.0)
