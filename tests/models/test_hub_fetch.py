"""Models from the hub: absent or complete, whatever a fake hub on the loopback interface cuts, corrupts or invents."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from huggingface_hub import constants
from mlx.utils import tree_flatten

from rvllm_local.commands.pack import pack_model
from rvllm_local.errors import (
    ChecksumError,
    DownloadError,
    ModelNotFoundError,
    RvllmError,
    UnsupportedModelError,
)
from rvllm_local.models import hub_fetch
from rvllm_local.models.describe import describe, outlined
from rvllm_local.models.hub_api import explained, redact
from rvllm_local.models.hub_fetch import fetch_repository
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.repository import (
    RECORD,
    Repository,
    parse_repository,
    read_record,
)
from rvllm_local.models.store import installed, pin
from tests.support import gguf
from tests.support.gguf import llama_metadata, llama_tensors, split_gguf, write_gguf
from tests.support.hub import FakeHub, serve
from tests.support.tiny import save_tiny, tiny_model

REPOSITORY = "owner/tiny"
SECRET = "hf_averysecrettokenthatmustneverbeshown"


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = save_tiny("llama", tmp_path_factory.mktemp("source") / "tiny")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE",
        str(tmp_path / "hf"),
    )
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 10_000
    )  # what a cut may lose; 10 MB otherwise
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(
    store: Path, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    with serve(FakeHub(files=dict(model_files))) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


def visible(store: Path) -> list[str]:
    """What the store shows as models."""
    return sorted(
        path.name for path in store.iterdir() if not path.name.startswith(".")
    )


def test_a_model_is_fetched_once_and_noted(
    hub: FakeHub, store: Path, model_files: dict[str, bytes]
) -> None:
    hub.files |= {
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"x",
    }
    hub.files |= {"README.md": b"# hello", "original/consolidated.safetensors": b"x"}
    said: list[str] = []
    loaded = load_model(locate(REPOSITORY, said.append))
    expected = dict(tree_flatten(tiny_model("llama")[0].parameters()))
    assert mx.array_equal(
        loaded.module.lm_head.weight, expected["lm_head.weight"]
    ).item()
    folder = store / "owner--tiny"
    assert {path.name for path in folder.iterdir()} == {*model_files, RECORD}
    record = read_record(folder)
    assert record is not None
    assert (record["commit"], record["revision"], record["repository"]) == (
        hub.commit,
        "main",
        REPOSITORY,
    )
    weights = model_files["model.safetensors"]
    assert record["files"]["model.safetensors"] == {
        "size": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    asked = len(hub.requests)
    assert locate(REPOSITORY).path == folder
    assert len(hub.requests) == asked
    assert any("100 %" in line for line in said)
    assert visible(store) == ["owner--tiny"]


@pytest.mark.parametrize("plain_git", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_wrong_bytes_of_the_right_size(
    hub: FakeHub, store: Path, name: str, plain_git: bool
) -> None:
    hub.corrupt = {name}
    hub.plain_git = {name} if plain_git else set()
    with pytest.raises(ChecksumError, match=name):
        fetch_repository(REPOSITORY, lambda _: None)
    assert visible(store) == []
    hub.corrupt = set()
    assert fetch_repository(REPOSITORY, lambda _: None).is_dir()


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_cut_download_goes_on_where_it_stopped(
    hub: FakeHub, store: Path, ignore_range: bool
) -> None:
    hub.cut_after = {"model.safetensors": [100_000, 50_000]}
    hub.ignore_range = ignore_range
    assert fetch_repository(REPOSITORY, lambda _: None).is_dir()
    ranges = [
        headers.get("range") or headers.get("Range")
        for _, path, headers in hub.requests
        if "safetensors" in path
    ]
    assert ranges[:2] == [None, "bytes=100000-"]


def test_a_run_that_failed_is_resumed_by_the_next(hub: FakeHub, store: Path) -> None:
    hub.cut_after = {"model.safetensors": [90_000, *[0] * 8]}
    with pytest.raises(DownloadError, match="try again"):
        fetch_repository(REPOSITORY, lambda _: None)
    assert visible(store) == []
    hub.cut_after, hub.requests = {}, []
    assert fetch_repository(REPOSITORY, lambda _: None).is_dir()
    assert hub.fetched() == ["model.safetensors"]
    assert any("bytes=90000-" in str(headers) for _, _, headers in hub.requests)
    assert not list((store / ".partial").iterdir())


def test_a_changed_revision_starts_again(hub: FakeHub, store: Path) -> None:
    hub.cut_after = {"model.safetensors": [90_000, *[0] * 8]}
    with pytest.raises(DownloadError):
        fetch_repository(REPOSITORY, lambda _: None)
    hub.cut_after, hub.commit, hub.requests = {}, "b" * 40, []
    hub.files["generation_config.json"] = b'{"eos_token_id": 0}'
    folder = fetch_repository(REPOSITORY, lambda _: None)
    assert (read_record(folder) or {})["commit"] == "b" * 40
    assert set(hub.fetched()) == set(hub.files)
    assert all(
        "/" + "b" * 40 + "/" in path
        for _, path, _ in hub.requests
        if "/resolve/" in path
    )


def test_a_newer_commit_takes_the_place_of_the_old(hub: FakeHub, store: Path) -> None:
    fetch_repository(REPOSITORY, lambda _: None)
    hub.commit = "c" * 40
    hub.files["generation_config.json"] = b'{"eos_token_id": 2}'
    folder = fetch_repository(REPOSITORY, lambda _: None)
    assert not (folder / "generation_config.json").exists()
    hub.corrupt = {"model.safetensors"}
    with pytest.raises(ChecksumError):
        fetch_repository(REPOSITORY, lambda _: None, refresh=True)
    assert load_model(locate(REPOSITORY)).eos_token_ids == (0,)
    hub.corrupt = set()
    fetch_repository(REPOSITORY, lambda _: None, refresh=True)
    assert load_model(locate(REPOSITORY)).eos_token_ids == (2, 0)
    assert visible(store) == ["owner--tiny"]
    said: list[str] = []
    fetch_repository(REPOSITORY, said.append, refresh=True)
    assert "up to date" in said[-1]


def test_a_model_that_lost_a_file_is_fetched_again_and_stays_pinned(
    hub: FakeHub, store: Path
) -> None:
    folder = fetch_repository(REPOSITORY, lambda _: None)
    pin(REPOSITORY, pinned=True)
    for refresh in (False, True):
        (folder / "model.safetensors").write_bytes(b"cut")
        assert fetch_repository(REPOSITORY, lambda _: None, refresh=refresh) == folder
        assert load_model(locate(REPOSITORY)).vocab_size == 384
        assert installed()[0].pinned


def test_the_plan_fetches_the_configuration_alone(hub: FakeHub, store: Path) -> None:
    with outlined(REPOSITORY, lambda _: None) as described:
        assert (described.vocab_size, described.name) == (384, REPOSITORY)
    assert hub.fetched() == ["config.json"]
    whole = locate(REPOSITORY)
    hub.requests = []
    with outlined(REPOSITORY, lambda _: None) as again:
        assert (
            again.weights_bytes
            == described.weights_bytes
            == describe(whole).weights_bytes
        )
    assert hub.requests == []


def test_more_bytes_than_promised_are_not_taken(hub: FakeHub, store: Path) -> None:
    size = len(hub.files["model.safetensors"])
    with serve(FakeHub(files={"model.safetensors": bytes(20 * size)})) as other:
        hub.redirect = {"model.safetensors": f"{other.url}/cdn/model.safetensors"}
        with pytest.raises(DownloadError, match=f"more than {size} bytes came"):
            fetch_repository(REPOSITORY, lambda _: None)
    (part,) = store.glob(".partial/*/*/model.safetensors.part")
    assert part.stat().st_size <= size
    assert visible(store) == []


def test_revisions_lie_side_by_side(hub: FakeHub, store: Path) -> None:
    locate(REPOSITORY)
    locate(f"{REPOSITORY}@v1")
    assert visible(store) == ["owner--tiny", "owner--tiny@v1"]
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        locate(f"{REPOSITORY}@v9")


def test_another_host_never_sees_the_token(
    hub: FakeHub, model_files: dict[str, bytes]
) -> None:
    with serve(FakeHub(files=dict(model_files))) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        hub.redirect = {
            "model.safetensors": f"{elsewhere}/cdn/model.safetensors?signature=abc"
        }
        assert fetch_repository(REPOSITORY, lambda _: None).is_dir()
        assert [path for _, path, _ in other.requests] == ["/cdn/model.safetensors"]
        assert SECRET not in str(other.requests)
        assert SECRET in str(hub.requests)


def test_a_redirect_to_other_bytes_is_found_out(
    hub: FakeHub, store: Path, model_files: dict[str, bytes]
) -> None:
    size = len(model_files["model.safetensors"])
    with serve(FakeHub(files={"model.safetensors": bytes(size)})) as other:
        hub.redirect = {"model.safetensors": f"{other.url}/cdn/model.safetensors"}
        with pytest.raises(ChecksumError):
            fetch_repository(REPOSITORY, lambda _: None)
    assert visible(store) == []


HOSTILE_NAMES = [
    "../evil.json",
    "a/../../evil.json",
    "/etc/cron.d/evil",
    "..\\evil.json",
    "sub\\evil.json",
    "C:evil.json",
    "a//b.json",
    "./config.json",
    "x" * 300 + ".json",
    "a/" * 600 + "b.json",
    "new\nline.json",
    "bell\x07.json",
    "right\u202eto-left.json",
    "NUL.json",
    "sub/aux",
    "Config.json",
    "MODEL.safetensors",
    "",
    "..",
]


@pytest.mark.parametrize(
    "name", HOSTILE_NAMES, ids=[ascii(name)[:30] for name in HOSTILE_NAMES]
)
def test_hostile_names_are_not_fetched(
    hub: FakeHub, store: Path, name: str, tmp_path: Path
) -> None:
    """Nobody wants a file of such a name, so it refuses no model and lies nowhere."""
    hub.names = [{"rfilename": name, "size": 3, "blobId": "0" * 40}]
    folder = fetch_repository(REPOSITORY, lambda _: None)
    expected = {*hub.files, RECORD}
    assert {path.name for path in folder.rglob("*")} == expected
    assert set(hub.fetched()) == set(hub.files)
    assert not list(tmp_path.rglob("*evil*"))


def test_two_wanted_names_that_are_one_on_some_systems(hub: FakeHub) -> None:
    row = {"size": 3, "blobId": "0" * 40}
    hub.names = [
        {**row, "rfilename": "model-A.safetensors"},
        {**row, "rfilename": "model-a.safetensors"},
    ]
    with pytest.raises(DownloadError, match="one file on many systems"):
        fetch_repository(REPOSITORY, lambda _: None)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    "row",
    [
        {"size": None},
        {"size": -1},
        {"size": 2**60},
        {"blobId": None},
        {"blobId": "zz"},
        {"lfs": {"size": 3, "sha256": "short", "pointerSize": 1}, "blobId": None},
    ],
)
def test_files_without_size_or_checksum_are_refused(
    hub: FakeHub, store: Path, row: dict[str, Any]
) -> None:
    del hub.files["tokenizer_config.json"]
    hub.names = [
        {"rfilename": "tokenizer_config.json", "size": 3, "blobId": "0" * 40, **row}
    ]
    with pytest.raises(DownloadError, match="tokenizer_config"):
        fetch_repository(REPOSITORY, lambda _: None)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    "change",
    [
        {"model_file": "x.py"},
        {"model_type": "nope"},
    ],
)
def test_a_canary_is_refused_before_its_weights(
    hub: FakeHub, store: Path, change: dict[str, Any]
) -> None:
    hub.files["config.json"] = json.dumps(
        {**json.loads(hub.files["config.json"]), **change}
    ).encode()
    hub.files["x.py"] = b"open('/tmp/canary', 'w')"
    with pytest.raises(UnsupportedModelError):
        locate(REPOSITORY)
    assert "model.safetensors" not in hub.fetched()
    assert "x.py" not in hub.fetched()
    assert visible(store) == []


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a\\b.safetensors",
        7,
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(
    hub: FakeHub, store: Path, shard: Any
) -> None:
    hub.files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"lm_head.weight": shard}}
    ).encode()
    with pytest.raises(RvllmError):
        locate(REPOSITORY)
    assert visible(store) == []


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (("pytorch_model.bin", "config.json"), "pickled"),
        (("config.json",), r"no config\.json with safetensors"),
        (("model.safetensors",), r"no config\.json"),
        (("tiny.Q4_0.gguf",), r"owner/tiny/tiny\.Q4_0\.gguf"),
        ((), "no config"),
    ],
)
def test_repositories_without_a_model_say_what_they_hold(
    hub: FakeHub, files: tuple[str, ...], match: str
) -> None:
    hub.files = dict.fromkeys(files, b"{}")
    with pytest.raises(DownloadError, match=match):
        locate(REPOSITORY)
    assert hub.fetched() == []


def test_one_gguf_file_of_a_repository(hub: FakeHub, store: Path) -> None:
    data = write_gguf(llama_metadata(), llama_tensors(gguf.Q4_1)[0])
    hub.files = {"tiny.Q4_1.gguf": data, "tiny.Q8_0.gguf": b"other"}
    files = locate(f"{REPOSITORY}/tiny.Q4_1.gguf")
    assert files.kind == "gguf"
    assert files.path.read_bytes() == data
    assert hub.fetched() == ["tiny.Q4_1.gguf"]
    with pytest.raises(DownloadError, match=r"tiny\.Q8_0\.gguf"):
        locate(f"{REPOSITORY}/tiny.Q5_0.gguf")


def test_a_gguf_model_in_parts_comes_whole(hub: FakeHub, store: Path) -> None:
    parts = split_gguf(llama_metadata(), llama_tensors(gguf.Q4_1)[0], 2)
    names = [f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.files = dict(zip(names, parts, strict=True))
    files = locate(f"{REPOSITORY}/{names[1]}")
    assert sorted(hub.fetched()) == names
    assert [path.read_bytes() for path in files.weight_paths()] == parts
    assert locate(f"{REPOSITORY}/{names[0]}").weight_paths() == files.weight_paths()
    assert installed()[0].names == (f"{REPOSITORY}/{names[0]}",)
    del hub.files[names[0]]
    hub.files["other-00001-of-00002.gguf"] = b""
    with pytest.raises(DownloadError, match="lacks other-00002-of-00002"):
        locate(f"{REPOSITORY}/other-00001-of-00002.gguf")


def test_a_gguf_file_in_a_folder_of_a_repository(hub: FakeHub, store: Path) -> None:
    data = write_gguf(llama_metadata(), llama_tensors(gguf.Q4_1)[0])
    hub.files = {"Q4_1/tiny Q4.GGUF": data, "README.md": b"#"}
    name = f"{REPOSITORY}/Q4_1/tiny Q4.GGUF"
    files = locate(name)
    assert (files.kind, files.path.read_bytes()) == ("gguf", data)
    assert installed()[0].names == (name,)
    assert locate(name).path == files.path
    with pytest.raises(DownloadError, match="name one of them, as in owner/tiny/Q4_1"):
        locate(REPOSITORY)


def test_a_token_that_expired_is_said_in_our_words(hub: FakeHub) -> None:
    error = RuntimeError("401 Client Error. User Access Token is expired")
    assert "run `hf auth login`" in str(explained("owner/tiny", error))


def test_a_bundle_can_be_published(hub: FakeHub, store: Path, tmp_path: Path) -> None:
    pack_model(
        locate(str(save_tiny("qwen3", tmp_path / "tiny"))), tmp_path / "tiny.rvllm"
    )
    hub.files = {
        path.name: path.read_bytes() for path in (tmp_path / "tiny.rvllm").iterdir()
    }
    files = locate(REPOSITORY)
    assert files.kind == "bundle"
    assert load_model(files).model_type == "qwen3"


def test_offline_only_what_is_there(
    hub: FakeHub, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        locate(REPOSITORY)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    locate(REPOSITORY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate(REPOSITORY).path.is_dir()


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (404, ModelNotFoundError, "no repository"),
        (403, DownloadError, "gated"),
        (500, DownloadError, "500"),
    ],
)
def test_the_hubs_own_errors(
    hub: FakeHub, status: int, error: type[RvllmError], match: str
) -> None:
    hub.status = {"api": status}
    with pytest.raises(error, match=match) as caught:
        locate(REPOSITORY)
    assert "\n" not in str(caught.value)


def test_no_token_is_ever_shown(
    hub: FakeHub, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    hub.status = {"model.safetensors": 401}
    said: list[str] = []
    with pytest.raises(RvllmError) as caught:
        locate(REPOSITORY, said.append)
    shown = [
        str(caught.value),
        repr(caught.value.__cause__),
        *said,
        *capfd.readouterr(),
        caplog.text,
    ]
    assert SECRET not in "".join(shown)
    assert SECRET in str(hub.requests)
    assert redact(f"x {SECRET} https://me:pw@host/ Authorization: Bearer abc.def") == (
        "x *** https://***@host/ Authorization: Bearer ***"
    )


def test_no_space(hub: FakeHub, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hub_fetch.shutil,
        "disk_usage",
        lambda _: hub_fetch.shutil._ntuple_diskusage(10, 9, 1),
    )
    with pytest.raises(DownloadError, match="1 are free"):
        locate(REPOSITORY)
    assert hub.fetched() == []


@pytest.mark.parametrize("tenth", range(10))
def test_a_disk_that_fills_up(
    hub: FakeHub, store: Path, monkeypatch: pytest.MonkeyPatch, tenth: int
) -> None:
    """The disk is full at each tenth: nothing is shown as a model, and the next run goes on."""
    from rvllm_local.models import hub_files

    room = [sum(map(len, hub.files.values())) * tenth // 10]
    honest = hub_files._Counted.write

    def write(self: Any, data: bytes) -> int:
        if room[0] < len(data):
            raise OSError(28, "No space left on device")
        room[0] -= len(data)
        return honest(self, data)

    monkeypatch.setattr(hub_files._Counted, "write", write)
    with pytest.raises(DownloadError, match="No space left"):
        locate(REPOSITORY)
    assert visible(store) == []
    room[0] = 1 << 40
    assert load_model(locate(REPOSITORY)).vocab_size == 384


def test_two_at_once_fetch_once(hub: FakeHub, store: Path) -> None:
    found: list[Path] = []
    said: list[str] = []
    gate = threading.Barrier(3)

    def work() -> None:
        gate.wait()
        found.append(fetch_repository(REPOSITORY, said.append))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store / "owner--tiny"] * 3
    assert len(hub.fetched()) == len(hub.files)


KILLED = """
import os, sys
from huggingface_hub import constants
from rvllm_local.models.hub_fetch import fetch_repository
from rvllm_local.models import hub_files, hub_fetch
constants.DOWNLOAD_CHUNK_SIZE = 10_000
left = [int(sys.argv[1])]
honest = hub_files._Counted.write
def write(self, data):
    count = honest(self, data)
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
    return count
hub_files._Counted.write = write
install = hub_fetch._install
def dies(*given):
    if left[0] > 500:
        os.kill(os.getpid(), 9)
    install(*given)
hub_fetch._install = dies
fetch_repository("owner/tiny", lambda _: None)
"""


@pytest.mark.parametrize("moment", [*range(0, 58, 6), 1000])
def test_kill_minus_nine(hub: FakeHub, store: Path, moment: int) -> None:
    """Killed while it writes, or when all is there but nothing renamed: absent, and the next run completes it."""
    environment = {**os.environ, "HF_HOME": str(store.parent / "home")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(moment)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr.decode()[-500:]
    assert done.returncode == -signal.SIGKILL
    assert visible(store) == []
    hub.requests = []
    assert load_model(locate(REPOSITORY)).vocab_size == 384
    assert visible(store) == ["owner--tiny"]


def test_names_of_repositories() -> None:
    assert parse_repository("a/b") == Repository("a/b")
    assert parse_repository("a/b@v1.0") == Repository("a/b", "v1.0")
    assert parse_repository("a/b/c.Q4_K_M.gguf") == Repository(
        "a/b", None, "c.Q4_K_M.gguf"
    )
    for name in (
        "a",
        "a/b/c",
        "../b",
        "a/..b",
        "a/b?c",
        "/a/b",
        "a/b@",
        "a/b@../x",
        "a--b/c",
        "a/b@x/y",
        "a" * 300 + "/b",
    ):
        assert parse_repository(name) is None, name
