"""`rvllm cache`, and what `cache = "auto"` means for a server."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from rvllm_local.cli import main
from rvllm_local.commands import choose_cache
from rvllm_local.commands.choose_cache import with_server_cache
from rvllm_local.config import Config
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.options import EngineOptions

BLOCK = bytes(10_000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RVLLM_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("")
    return tmp_path / "kv"


def fill(folder: Path, name: str, number: int, blocks: int) -> list[Path]:
    """The files of a model that a server has left on disk."""
    store = BlockStore(
        folder,
        fingerprint=bytes([number]) * 32,
        budget_bytes=10**9,
        warn=print,
        name=name,
    )
    for block in range(blocks):
        store.put(bytes([block]) * 32, [BLOCK])
    store.close()
    return sorted((folder / (bytes([number]).hex() * 16)).rglob("*.kv"))


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, int]]:
    assert main(["cache", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    return {model["name"]: model for model in models}


def test_sizes_by_model_and_age(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = fill(folder, "qwen3.5-0.8b", 1, 3)
    fill(folder, "smollm2-135m", 2, 1)
    days_ago = time.time() - 3 * 24 * 3600
    os.utime(files[0], (days_ago, days_ago))
    models = printed(capsys)
    assert list(models) == ["qwen3.5-0.8b", "smollm2-135m"]
    size = models["smollm2-135m"]["size"]
    assert size > len(BLOCK)
    ages = models["qwen3.5-0.8b"]["last_used"]
    assert ages == {"today": 2 * size, "this week": size, "older": 0}
    assert main(["cache"]) == 0
    assert str(folder) in capsys.readouterr().out


def test_clear_takes_a_model_or_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(folder, "one", 1, 2)
    fill(folder, "two", 2, 2)
    assert main(["cache", "clear", "one"]) == 0
    assert list(printed(capsys)) == ["two"]
    assert main(["cache", "clear", "three"]) == 2
    assert "three" in capsys.readouterr().err
    assert main(["cache", "clear"]) == 0
    assert printed(capsys) == {}
    assert main(["cache", "clear"]) == 0


def test_an_engine_goes_on_over_a_cleared_cache(folder: Path) -> None:
    store = BlockStore(
        folder, fingerprint=bytes(32), budget_bytes=10**9, warn=print, name="one"
    )
    store.put(bytes(32), [BLOCK])
    assert store.flush(60)
    assert main(["cache", "clear"]) == 0
    assert store.get(bytes(32)) is None
    store.put(bytes(32), [BLOCK])
    assert store.flush(60)
    assert store.get(bytes(32)) == BLOCK
    assert store.stats().corrupt == 0
    store.close()


@pytest.mark.parametrize(
    ("free", "choice", "words"),
    [
        (100 * 10**9, "disk", "`rvllm cache clear` removes them"),
        (10**9, "memory", "in memory only"),
    ],
)
def test_a_server_takes_the_disk_where_it_has_room(
    free: int,
    choice: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(choose_cache, "_free_bytes", lambda _: free)
    config = Config("m", EngineOptions(cache_dir=str(tmp_path)))
    with caplog.at_level(logging.INFO):
        chosen = with_server_cache(config)
    assert chosen.options.cache == choice
    assert len(caplog.records) == 1
    assert words in caplog.text
    assert str(tmp_path) in caplog.text


def test_what_was_asked_for_stays(tmp_path: Path) -> None:
    for asked in ("memory", "off", "disk"):
        options = EngineOptions(cache=asked, cache_dir=str(tmp_path))
        config = Config("m", options)
        assert with_server_cache(config) is config
