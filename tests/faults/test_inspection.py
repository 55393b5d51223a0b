"""Configurations and headers are read in a process that can be killed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.errors import MemoryBudgetError, ModelFileError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.models import inspection
from rvllm_local.server.models.facts import model_facts
from rvllm_local.server.models.inspection import InspectionProcesses
from tests.support.processes import eventually, is_running

OPTIONS = EngineOptions(kv_memory=6_000_000)


@pytest.fixture(scope="module")
def processes() -> Iterator[InspectionProcesses]:
    processes = InspectionProcesses()
    yield processes
    processes.close()


def changed(base: Path, folder: Path, **settings: Any) -> ModelFiles:
    """A model like `base` but for some settings."""
    for path in base.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    text = json.dumps({**config, **settings})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return ModelFiles("folder", folder, "m")


def test_what_a_model_takes_and_its_context(
    processes: InspectionProcesses, tiny: Path, tmp_path: Path
) -> None:
    files = ModelFiles("folder", tiny, "tiny", tmp_path)  # with notes of its own
    planned = processes.plan(files, OPTIONS)
    assert 0 < planned.memory < planned.budget
    assert processes.context_length(files, OPTIONS) == 2048
    assert processes.facts(files) == model_facts(files)
    assert len(processes._idle) == 1
    process = processes._idle[0].process
    process.kill()
    process.wait()
    assert processes.context_length(files, OPTIONS) == 2048
    processes.close()
    assert processes.plan(files, OPTIONS) == planned
    assert not processes._idle, "the plan was noted"


def test_refusals_come_as_they_were_raised(
    processes: InspectionProcesses, tiny: Path, tmp_path: Path
) -> None:
    files = changed(tiny, tmp_path, hidden_size=-1)
    with pytest.raises(ModelFileError, match="hidden_size"):
        processes.plan(files, OPTIONS)
    assert processes.context_length(files, OPTIONS) == 2048
    huge = EngineOptions(kv_memory=10**15)
    with pytest.raises(MemoryBudgetError, match="bytes"):
        processes.plan(ModelFiles("folder", tiny, "tiny"), huge)


def test_what_never_ends_is_ended_by_the_kernel_and_holds_up_nobody(
    processes: InspectionProcesses,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = changed(tiny, tmp_path)
    config = tmp_path / "config.json"
    config.unlink()
    os.mkfifo(config)
    ends: list[BaseException] = []
    has_begun = threading.Event()
    ask = inspection._Reader.ask

    def asked(reader: Any, frame: bytes) -> Any:
        has_begun.set()
        return ask(reader, frame)

    def read() -> None:
        try:
            processes.plan(files, OPTIONS)
        except ModelFileError as error:
            ends.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(inspection._Reader, "ask", asked)
        patch.setattr(inspection, "_WALL_S", 3.0)
        hanging = threading.Thread(target=read)
        hanging.start()
        assert has_begun.wait(60)
    beside = ModelFiles("folder", tiny, "tiny", tmp_path / "notes")
    assert processes.plan(beside, OPTIONS).memory
    hanging.join(60)
    assert "takes more than 15 s or 1024 MB" in str(ends[0])


def test_too_many_layers_take_no_memory_of_the_server(
    processes: InspectionProcesses,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = changed(tiny, tmp_path, num_hidden_layers=1024)
    monkeypatch.setattr(inspection, "_CPU_S", 0.1)
    with pytest.raises(ModelFileError, match="cannot be used"):
        processes.plan(files, OPTIONS)


def test_closing_leaves_no_process_behind(tiny: Path) -> None:
    processes = InspectionProcesses()
    processes.context_length(ModelFiles("folder", tiny, "tiny"), OPTIONS)
    pid = processes._idle[0].process.pid
    processes.close()
    processes.close()
    eventually(lambda: not is_running(pid), 60)
