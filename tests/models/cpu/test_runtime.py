"""onnxruntime is asked for its version first, and keeps weights once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rvllm_local.models.cpu.onnx_file import GraphWriter
from rvllm_local.models.cpu.runtime import SessionOpener, missing_runtime, open_session


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No answer outlives a test."""
    missing_runtime.cache_clear()
    yield
    missing_runtime.cache_clear()


@pytest.mark.parametrize(
    ("version", "is_new_enough"),
    [
        ("1.19.2", False),
        ("0.9", False),
        ("1.20.0", True),
        ("1.32.0", True),
        ("2.0.0rc1", True),
    ],
)
def test_an_old_onnxruntime_is_said_to_be_too_old(
    version: str, is_new_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("onnxruntime")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    reason = missing_runtime()
    if is_new_enough:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"onnxruntime {version} is too old: ")
        assert "install onnxruntime>=1.20" in reason


def test_a_missing_onnxruntime_is_named_with_what_it_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = missing_runtime()
    assert reason is not None
    assert "cannot be imported" in reason
    assert "widened to float32" in reason


def test_a_session_does_not_keep_the_bytes_it_was_made_of() -> None:
    writer = GraphWriter()
    x = writer.input("x", "float32", ("M", 3))
    ones = writer.constant(np.ones((3, 2), dtype=np.float32))
    writer.output(writer.node("MatMul", [x, ones]), "y", "float32", ("M", 2))
    model = writer.model()
    references = [sys.getrefcount(piece) for piece in model]
    session = open_session(model)
    assert [sys.getrefcount(piece) for piece in model] == references
    (sums,) = session.run(["y"], {"x": np.array([[1, 2, 3]], dtype=np.float32)})
    assert sums.tolist() == [[6, 6]]


class Awaited(Future[Any]):
    """A session that is made as soon as somebody waits for it."""

    def __init__(self, log: list[int]) -> None:
        super().__init__()
        self._log = log
        log.append(0)
        self._number = len(log) - 1

    def result(self, timeout: float | None = None) -> None:
        self._log[self._number] += 1


class Recorder(Executor):
    """Says how often each session was waited for."""

    def __init__(self) -> None:
        self.waits: list[int] = []

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        return Awaited(self.waits)


@pytest.mark.parametrize(
    ("sizes", "waits"),
    [
        ([30, 30, 30], [0, 0, 0]),
        ([60, 60, 60], [1, 1, 0]),
        ([60, 30, 30], [1, 0, 0]),
        ([200, 10], [1, 0]),
        ([10, 200], [1, 0]),
    ],
)
def test_sessions_wait_for_others_of_more_bytes_than_are_made_at_once(
    sizes: list[int], waits: list[int]
) -> None:
    recorder = Recorder()
    opener = SessionOpener(recorder, most_bytes=400)
    for size in sizes:
        writer = GraphWriter()
        writer.constant(np.zeros(size, dtype=np.float32))
        opener.open(writer)
    assert recorder.waits == waits
