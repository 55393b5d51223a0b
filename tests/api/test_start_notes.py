"""What one start of a server leaves for the next: plans, and proofs of texts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rvllm_local import host
from rvllm_local.errors import ModelFileError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.own_sampling import OwnSampling
from rvllm_local.models.startup_notes import write_note
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.models.inspection_frames import Planned
from rvllm_local.server.models.plan_notes import PlanNote
from rvllm_local.server.models.served_model import Openers, Served, open_served
from rvllm_local.server.prompts.process import Prompts
from rvllm_local.server.prompts.proven import TextProof
from tests.support.api import PacedClient
from tests.support.prompts_here import PromptsHere

LONG_S = 60.0
OPTIONS = EngineOptions()
PLANNED = Planned(3 * 2**20, 2**33, OwnSampling({"temperature": 0.5}, "config"))
Change = Callable[[Path], None]


@pytest.fixture
def files(tiny: Path, tmp_path: Path) -> ModelFiles:
    """A copy of a tiny model, with notes of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return ModelFiles("folder", folder, "tiny", tmp_path / "cache")


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "may_have_gpu", lambda: False)


def rewrite(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def add(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


CHANGES = pytest.mark.parametrize("change", [rewrite, add])


def test_a_plan_is_noted_for_these_files_and_options(files: ModelFiles) -> None:
    assert PlanNote(files, OPTIONS).read() is None
    PlanNote(files, OPTIONS).write(PLANNED)
    assert PlanNote(files, OPTIONS).read() == PLANNED
    other = EngineOptions(max_rows=3)
    assert PlanNote(files, other).read() is None


@CHANGES
def test_a_plan_of_other_files_is_not_known(files: ModelFiles, change: Change) -> None:
    PlanNote(files, OPTIONS).write(PLANNED)
    change(files.path)
    assert PlanNote(files, OPTIONS).read() is None


def test_a_damaged_note_is_none(files: ModelFiles) -> None:
    note = PlanNote(files, OPTIONS)
    assert note._subject is not None
    write_note(note._subject, {"memory": "much"}, files.cache_dir)
    assert note.read() is None


def test_of_a_model_that_is_gone_nothing_is_known(tmp_path: Path) -> None:
    gone = ModelFiles("folder", tmp_path / "gone", "gone", tmp_path / "cache")
    PlanNote(gone, OPTIONS).write(PLANNED)
    assert PlanNote(gone, OPTIONS).read() is None
    TextProof(gone).note()
    assert not TextProof(gone).is_known


def test_where_a_gpu_may_be_and_with_adapters_nothing_is_noted(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = EngineOptions(adapters=(("a", "/somewhere"),))
    PlanNote(files, adapted).write(PLANNED)
    assert PlanNote(files, adapted).read() is None
    PlanNote(files, OPTIONS).write(PLANNED)
    monkeypatch.setattr(host, "may_have_gpu", lambda: True)
    assert PlanNote(files, OPTIONS).read() is None


@CHANGES
def test_texts_prove_themselves_anew_when_a_file_changes(
    files: ModelFiles, change: Change
) -> None:
    assert not TextProof(files).is_known
    TextProof(files).note()
    assert TextProof(files).is_known
    change(files.path)
    assert not TextProof(files).is_known


class Starts:
    """Openers that wait for each other, or fail."""

    def __init__(self) -> None:
        self.client = PacedClient()
        self.client_began = threading.Event()
        self.prompts_wait = False
        self.prompts_fail = False

    def engine(self, files: ModelFiles, options: EngineOptions) -> PacedClient:
        self.client_began.set()
        return self.client

    def prompts(self, files: ModelFiles, budget: ByteBudget) -> Prompts:
        if self.prompts_wait:
            assert self.client_began.wait(LONG_S)
        if self.prompts_fail:
            raise ModelFileError("the tokenizer explodes")
        return PromptsHere(files, budget)

    def open(self, files: ModelFiles) -> Served:
        openers = Openers(self.engine, self.prompts)
        return open_served(
            files, "tiny", PLANNED, OPTIONS, openers, ByteBudget(((10, 10),))
        )


def test_no_engine_is_started_for_texts_that_explode(files: ModelFiles) -> None:
    starts = Starts()
    starts.prompts_fail = True
    with pytest.raises(ModelFileError, match="explodes"):
        starts.open(files)
    assert not starts.client_began.is_set()


def test_texts_that_are_proven_do_not_hold_the_engine_up(files: ModelFiles) -> None:
    TextProof(files).note()
    starts = Starts()
    starts.prompts_wait = True
    assert starts.open(files).client is starts.client


def test_an_engine_that_was_started_beside_texts_that_fail_is_closed(
    files: ModelFiles,
) -> None:
    TextProof(files).note()
    starts = Starts()
    starts.prompts_wait = starts.prompts_fail = True
    with pytest.raises(ModelFileError, match="explodes"):
        starts.open(files)
    assert starts.client.is_closed
