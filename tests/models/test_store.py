"""The models on this machine: what is listed, told, removed, pinned and leased, and the verbs over it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local import cli
from rvllm_local.commands.model_facts import facts, unsound, verify_files
from rvllm_local.errors import ChecksumError, ModelNotFoundError
from rvllm_local.models.architecture import check_architecture
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.leases import running, take_lease, users_of
from rvllm_local.models.repository import RECORD, parse_repository
from rvllm_local.models.store import (
    InUseError,
    find_installed,
    forget_download,
    installed,
    leftovers,
    pin,
    remove,
)
from tests.support.tiny import save_tiny


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one fetched model, `owner/tiny`."""
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path))
    folder = save_tiny("llama", tmp_path / "models" / "owner--tiny")
    files = {
        path.name: {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.iterdir()
    }
    record = {
        "version": 1,
        "repository": "owner/tiny",
        "revision": "main",
        "commit": "a" * 40,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return tmp_path / "models"


def test_every_entry_can_be_fetched_and_built() -> None:
    entries = Catalogue.load().entries
    assert len(entries) >= 50
    for name, entry in entries.items():
        assert name == name.lower() == entry.name
        assert entry.repo is None or parse_repository(entry.repo) is not None, name
        assert (entry.repo is None) == (entry.pypi is not None), name
        assert entry.size > 0, name
        assert entry.context >= 2048, name
        assert (
            check_architecture({"model_type": entry.architecture}) == entry.architecture
        )


def test_search_wants_every_word() -> None:
    found = {entry.name for entry in Catalogue.load().search("qwen 8b")}
    assert found
    assert all("qwen" in name for name in found)
    assert Catalogue.load().search("no-such-thing") == []


def test_what_is_whole_is_listed(store: Path) -> None:
    (store / ".partial" / "cut").mkdir(parents=True)
    (store / "stray").mkdir()
    (model,) = installed()
    assert (model.names, model.kind, model.commit) == (
        ("owner/tiny",),
        "safetensors",
        "a" * 40,
    )
    assert find_installed("OWNER/Tiny") == model
    assert [path.name for path in leftovers()] == ["cut"]


def test_what_came_of_a_download_is_forgotten(store: Path) -> None:
    partial = store / ".partial" / "owner--half" / "commit"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"x" * 1000)
    with taking_lock(store / ".locks" / "owner--half"):
        assert forget_download("owner/half") == 0  # it is being fetched
    assert forget_download("owner/half") == 1000
    assert leftovers() == []
    assert forget_download("owner/half") == 0
    assert forget_download("owner/tiny") == 0  # it is whole
    assert find_installed("owner/tiny") is not None
    assert forget_download("smollm2-135m") == 0  # a wheel


@contextlib.contextmanager
def taking_lock(path: Path) -> Iterator[None]:
    """Hold a lock as a process that fetches does."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_facts_of_an_installed_model(store: Path) -> None:
    known = facts("owner/tiny")
    assert (
        known["architecture"],
        known["layers"],
        known["installed"],
        known["format"],
    ) == (
        "llama",
        3,
        True,
        "safetensors",
    )
    assert known["commit"] == "a" * 40
    assert facts("qwen3-8b")["installed"] is False
    with pytest.raises(ModelNotFoundError, match="neither in the catalogue"):
        facts("owner/other")


def test_a_changed_file_is_found(store: Path) -> None:
    verify_files("owner/tiny", lambda _: None)
    weights = store / "owner--tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ChecksumError, match=r"model.safetensors.*pull it again"):
        verify_files("owner/tiny", lambda _: None)


def test_a_model_that_is_open_or_pinned_stays(store: Path) -> None:
    folder = store / "owner--tiny"
    lease = take_lease("owner/tiny", folder)
    assert lease is not None
    assert [one.pid for one in users_of(folder)] == [os.getpid()]
    with pytest.raises(InUseError, match=str(os.getpid())):
        remove("owner/tiny")
    lease.close()
    lease.close()
    pin("owner/tiny", pinned=True)
    with pytest.raises(InUseError, match="pinned"):
        remove("owner/tiny")
    pin("owner/tiny", pinned=False)
    assert remove("owner/tiny").names == ("owner/tiny",)
    assert (installed(), folder.exists(), leftovers()) == ([], False, [])
    with pytest.raises(ModelNotFoundError, match="installed are none"):
        remove("owner/tiny")


def test_a_killed_process_gives_its_lease_back(store: Path) -> None:
    code = (
        "import os, pathlib, signal\n"
        "from rvllm_local.models.leases import take_lease\n"
        f"lease = take_lease('owner/tiny', pathlib.Path({str(store / 'owner--tiny')!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert running() == []
    assert remove("owner/tiny").size > 0


def test_the_verbs(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["ls", "--installed", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [
        "owner/tiny"
    ]
    assert cli.main(["ls"]) == 0
    assert "qwen3-8b" in capsys.readouterr().out
    assert cli.main(["search", "gemma"]) == 0
    assert "gemma" in capsys.readouterr().out
    assert cli.main(["search", "no-such-model"]) == 1
    assert cli.main(["show", "owner/tiny", "--verify"]) == 0
    assert "safetensors" in capsys.readouterr().out
    assert cli.main(["ps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"processes": [], "engine": None}
    assert cli.main(["rm", "owner/tiny"]) == 2  # nobody there to ask
    assert "--yes" in capsys.readouterr().err
    assert cli.main(["rm", "owner/tiny", "--yes"]) == 0
    assert cli.main(["rm", "owner/tiny", "--yes"]) == 2
    assert installed() == []


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../b",
        "owner/..",
        "a" * 900,
        "b" * 5000,
        "\0",
        "",
        "-rf",
        "~no-such-user/x",
    ],
)
def test_hostile_names_are_no_models(
    store: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", "--", name]) == 2
    assert capsys.readouterr().err.startswith("rvllm: error: ")
    assert (store / "owner--tiny").exists()


def findings(*arguments: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "rvllm_local.cli", "doctor", "--json", *arguments],
        capture_output=True,
        check=False,
    )
    rows = json.loads(done.stdout)["findings"]
    assert done.returncode == any(row["state"] == "failed" for row in rows)
    return [row for row in rows if row["check"] == "store"]


def test_a_download_that_goes_on_is_no_leftover(store: Path) -> None:
    for name in (
        ".partial/cut",
        ".partial/coming",
        f"wheel/.staging-{os.getpid()}-x",
        "wheel/.staging-999999999-x",
    ):
        (store / name).mkdir(parents=True)
    (store / ".locks").mkdir()
    with (store / ".locks" / "coming").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [path.name for path in leftovers()] == ["cut", ".staging-999999999-x"]


def test_headers_of_every_format_are_looked_at(store: Path) -> None:
    folder = store / "smollm2-135m"
    folder.mkdir()
    (folder / Catalogue.load().entries["smollm2-135m"].file).write_bytes(b"GGUF cut")
    (model,) = [model for model in installed() if model.kind == "gguf"]
    assert "corrupt or cut" in (unsound(model) or "")
    (store / "mine.rvllm").mkdir()
    (store / "mine.rvllm" / "manifest.json").write_text("{}")
    (model,) = [model for model in installed() if model.kind == "bundle"]
    assert "not the manifest" in (unsound(model) or "")


def test_doctor_finds_what_is_wrong_in_the_store(store: Path) -> None:
    assert [row["state"] for row in findings("--verify")] == ["ok"]
    weights = store / "owner--tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert [row["state"] for row in findings()] == ["ok"]
    (_, wrong) = findings("--verify")
    assert "sha256" in wrong["detail"]
    assert "rvllm rm owner/tiny && rvllm pull owner/tiny" in wrong["advice"]
    weights.write_bytes(content[:-100])
    (_, wrong) = findings()
    assert "were fetched" in wrong["detail"]
    weights.unlink()
    (store / ".partial" / "cut").mkdir(parents=True)
    (_, wrong, left) = findings()
    assert "is gone" in wrong["detail"]
    assert left["state"] == "warning"
