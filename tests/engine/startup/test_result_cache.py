"""What a start proved is used by the next one only where nothing has changed that it depends on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from rvllm_local.engine.startup import choose_runner, result_cache
from rvllm_local.engine.startup.build import open_core
from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models import loader
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.startup_notes import read_note, write_note
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import Request, SamplingParams, StreamEvent
from tests.support.tiny import save_tiny

OPTIONS = EngineOptions(kv_memory=4_000_000, max_rows=4, prefill_chunk=64)

pytestmark = pytest.mark.skipif(
    default_backend() != "none", reason="kernels are proven at each start"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path / "cache"))
    path: Path = save_tiny("llama", tmp_path / "tiny", seed=3)
    return path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a model and with what a start of it has proved."""
    root = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVLLM_CACHE_DIR", str(root / "cache"))
        answer(save_tiny("llama", root / "tiny", seed=3))
    return root


@pytest.fixture
def proved(started: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that was proved, by the start of this test or an earlier one."""
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(started / "cache"))
    return started / "tiny"


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was proven so far, by name."""
    done: list[str] = []
    for name in ("find_agreeing_runner", "measure_scratch", "make_rows_independent"):
        honest = getattr(choose_runner, name)

        def counted(
            *arguments: object,
            _name: str = name,
            _honest: Callable[..., object] = honest,
            **named: object,
        ):
            done.append(_name)
            return _honest(*arguments, **named)

        monkeypatch.setattr(choose_runner, name, counted)
    return done


def answer(folder: Path, options: EngineOptions = OPTIONS) -> list[int]:
    """Start an engine over a folder and let it answer."""
    files = locate(str(folder))
    core = open_core(files, read_tokenizer(files), options)
    tokens: list[int] = []

    def sink(event: StreamEvent) -> None:
        tokens.extend(event.token_ids)

    core.add(
        Request(
            "one",
            (5, 6, 7),
            SamplingParams(max_tokens=6, temperature=0, ignore_eos=True),
            seed=1,
        ),
        sink,
    )
    while core.has_work:
        core.step()
    core.close("the end")
    return tokens


def test_the_second_start_proves_nothing_and_answers_the_same(
    folder: Path, proofs: list[str]
) -> None:
    first = answer(folder)
    assert proofs == ["find_agreeing_runner", "measure_scratch"]
    assert answer(folder) == first
    assert len(proofs) == 2


def test_the_deterministic_mode_is_remembered_with_its_rows(
    folder: Path, proofs: list[str]
) -> None:
    options = replace(OPTIONS, deterministic=True)
    first = answer(folder, options)
    assert proofs == [
        "find_agreeing_runner",
        "make_rows_independent",
        "measure_scratch",
    ]
    assert answer(folder, options) == first
    assert len(proofs) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"kv_memory": 5_000_000},
        {"max_rows": 5},
        {"prefill_chunk": 32},
        {"context_length": 64},
        {"kv_dtype": "int8"},
        {"deterministic": True},
        {"attention": "reference"},
    ],
)
def test_other_options_are_proven_anew(
    proved: Path, proofs: list[str], change: dict[str, object]
) -> None:
    answer(proved)
    proofs.clear()
    answer(proved, replace(OPTIONS, **change))  # type: ignore[arg-type]
    assert "find_agreeing_runner" in proofs


@pytest.mark.parametrize(
    "what", ["weights", "config", "code", "setting", "library", "processor", "blas"]
)
def test_whatever_it_depends_on_voids_it(
    proved: Path, proofs: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(proved)
    proofs.clear()
    if what == "weights":
        path = next(proved.glob("*.safetensors"))
        path.write_bytes(path.read_bytes())
    elif what == "config":
        config = proved / "config.json"
        config.write_text(
            config.read_text()
            .replace('"llama"', '"llama" ', 1)
            .replace("{", '{"extra": 1, ', 1)
        )
    elif what == "code":
        honest = result_cache._code
        monkeypatch.setattr(
            result_cache, "_code", lambda: [*honest(), ("another.py", 1, 2)]
        )
    elif what == "setting":
        monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    elif what == "library":
        monkeypatch.setattr(mx, "__version__", "99.0")
    elif what == "processor":
        monkeypatch.setattr(result_cache, "_processor", lambda: ("another",))
    else:
        monkeypatch.setattr(result_cache, "_blas", lambda: "another")
    answer(proved)
    assert proofs == ["find_agreeing_runner", "measure_scratch"]


@pytest.mark.parametrize(
    "damage", ["open to others", "link", "text", "types", "negative", "subject"]
)
def test_a_note_that_is_not_ours_counts_for_nothing(
    folder: Path, proofs: list[str], damage: str, tmp_path: Path
) -> None:
    answer(folder)
    proofs.clear()
    for note in (tmp_path / "cache" / "models" / ".notes").iterdir():
        assert note.stat().st_mode & 0o777 == 0o600
        if damage == "open to others":
            note.chmod(0o644)
        elif damage == "link":
            note.rename(tmp_path / note.name)
            note.symlink_to(tmp_path / note.name)
        elif damage == "text":
            note.write_bytes(b"\xff{[" * 100)
        elif damage == "types":
            note.write_text(
                note.read_text().replace("true", '"yes"').replace("false", "0")
            )
        elif damage == "negative":
            note.write_text(
                note.read_text().replace(
                    '"value": [true, false, 0, ', '"value": [true, false, 0, -'
                )
            )
        else:
            note.write_text(note.read_text().replace('"subject": "', '"subject": "x'))
    answer(folder)
    assert proofs == ["find_agreeing_runner", "measure_scratch"]


def test_a_refused_model_is_refused_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise UnsupportedModelError("its logits differ")

    monkeypatch.setattr(choose_runner, "find_agreeing_runner", refuse)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="logits differ"):
            answer(folder)


def test_without_the_self_check_nothing_is_noted(
    folder: Path, proofs: list[str]
) -> None:
    answer(folder, replace(OPTIONS, self_check=False))
    assert not proofs
    answer(folder)
    assert proofs == ["find_agreeing_runner", "measure_scratch"]


def test_weights_are_looked_through_once_and_again_when_they_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    honest = loader.check_finite
    monkeypatch.setattr(
        loader,
        "check_finite",
        lambda path, module: looked.append(path) or honest(path, module),
    )
    for _ in range(3):
        load_model(locate(str(folder)))
    assert len(looked) == 1
    path = next(folder.glob("*.safetensors"))
    weights = dict(mx.load(str(path)))
    name = sorted(weights)[0]
    spoilt = np.array(weights[name].astype(mx.float32))
    spoilt.flat[0] = np.nan
    times = path.stat()
    mx.save_safetensors(
        str(path),
        {**weights, name: mx.array(spoilt).astype(weights[name].dtype)},
        {"format": "mlx"},
    )
    os.utime(
        path, ns=(times.st_atime_ns, times.st_mtime_ns)
    )  # its size and time as before
    with pytest.raises(ModelFileError, match="NaN"):
        load_model(locate(str(folder)))


def test_notes_that_cannot_be_written_cost_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "file"
    place.write_text("no folder")
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(place))
    write_note("a", 1)
    assert read_note("a") is None


def test_old_notes_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("rvllm_local.models.startup_notes._MOST", 10)
    for number in range(30):
        write_note(f"note {number}", number)
    assert len(list((tmp_path / "models" / ".notes").iterdir())) == 10
    assert read_note("note 29") == 29
