"""Pinning the catalogue: the hub's commit and sizes come in, and nothing else of the file changes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import pin_catalogue
from tests.support.hub import FakeHub, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {
        "config.json": b"{}",
        "model.safetensors": b"\0" * 1000,
        "tokenizer.json": b"{}",
        "run.py": b"x" * 500,
    }
    with serve(FakeHub("mlx-community/Qwen3-8B-4bit", "c" * 40, files)) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


def test_an_entry_is_pinned_and_the_others_stay(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pin_catalogue.CATALOGUE.read_text()
    copy = tmp_path / "catalog.toml"
    copy.write_text(before)
    assert pin_catalogue.main(["qwen3-8b", "llama3-8b"], copy) == 1
    told = capsys.readouterr().out
    assert f"qwen3-8b: {'c' * 40}" in told and "llama3-8b: left as it is" in told
    changed = [
        line
        for line in difflib.ndiff(before.splitlines(), copy.read_text().splitlines())
        if line[0] in "+-"
    ]
    assert len(changed) == 4
    row = tomllib.loads(copy.read_text())["qwen3-8b"]
    assert (row["revision"], row["size"], row["verified"]) == ("c" * 40, 1004, False)
