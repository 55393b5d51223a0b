"""Kept responses are bounded by their number and by all that they hold."""

from __future__ import annotations

import pytest

from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.http.problems import Problem


def test_the_oldest_go_when_there_are_too_many_or_too_much() -> None:
    store = ResponseStore(max_kept=3, max_bytes=100)
    for number in range(4):
        store.keep({"id": str(number)}, (), (), 10)
    with pytest.raises(Problem, match="no response"):
        store.find("0")
    store.keep({"id": "large"}, (), (), 85)
    assert store.find("large").size == 85 and store.find("3")
    with pytest.raises(Problem):
        store.find("2")
    store.forget("large")
    store.keep({"id": "too large"}, (), (), 101)
    for gone in ("3", "too large"):
        with pytest.raises(Problem):
            store.find(gone)
