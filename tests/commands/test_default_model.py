"""Which model answers where nobody names one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.commands import default_model as chosen
from rvllm_local.config import Config, load_config
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.repository import RECORD
from rvllm_local.tui import first_start, offers

LARGER = ("qwen3-0.6b", "qwen3-4b")
FAST = 400 * 10**9  # bytes a second


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room for all of them, whose speed need not be measured."""

    async def measured() -> float:
        return FAST

    monkeypatch.setattr(first_start, "measure_bandwidth", measured)
    monkeypatch.setattr(offers, "_room", lambda: 64 * 10**9)
    monkeypatch.setattr(offers, "is_on_cpu", lambda: False)


def config_of(folder: Path, **flags: str) -> Config:
    return load_config({"cache_dir": str(folder), **flags}, {})


def install(folder: Path, *names: str) -> None:
    """Folders as a fetch leaves them; nobody reads the weights here."""
    for name in names:
        entry = Catalogue.load().entries[name]
        model = folder / "models" / name
        model.mkdir(parents=True)
        if entry.file:
            (model / entry.file).write_bytes(b"")
            continue
        record = {"repository": entry.repo, "revision": entry.revision or "main"}
        (model / RECORD).write_text(json.dumps(record))


def test_a_new_machine_takes_the_small_model(tmp_path: Path) -> None:
    install(tmp_path, "smollm2-135m")
    for config in (config_of(tmp_path), config_of(tmp_path, model="default")):
        assert chosen.decided_model(config) == "smollm2-135m"
        assert chosen.default_model(config) == "smollm2-135m"


@pytest.mark.usefixtures("room")
def test_the_best_installed_model_is_taken(tmp_path: Path) -> None:
    install(tmp_path, "smollm2-135m", *LARGER)
    config = config_of(tmp_path)
    assert chosen.decided_model(config) is None  # this machine has to be measured
    assert chosen.default_model(config) == "qwen3-4b"
    assert chosen.default_model(config_of(tmp_path, model="default")) == "qwen3-4b"


@pytest.mark.usefixtures("room")
def test_a_named_model_is_taken_as_it_is(tmp_path: Path) -> None:
    install(tmp_path, *LARGER)
    for name in ("smollm2-135m", "qwen3-0.6b", "elsewhere/model"):
        assert chosen.default_model(config_of(tmp_path, model=name)) == name


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("speed", [None, 1.0])
def test_a_machine_too_slow_or_not_measured_takes_the_small_model(
    speed: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured() -> float | None:
        return speed

    monkeypatch.setattr(first_start, "measure_bandwidth", measured)
    install(tmp_path, *LARGER)
    assert chosen.default_model(config_of(tmp_path)) == "smollm2-135m"


@pytest.mark.usefixtures("room")
def test_the_list_says_what_is_installed(tmp_path: Path) -> None:
    install(tmp_path, "smollm2-135m", "qwen3-4b")
    listed = offers.catalogue_models((), tmp_path)
    here = {info.id for info in listed if info.installed}
    assert here == {"smollm2-135m", "qwen3-4b"}
