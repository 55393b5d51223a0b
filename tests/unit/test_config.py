"""The configuration: which source wins, what a size may look like, and what a bad value is told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvllm_local.config import Config, load_config
from rvllm_local.errors import ConfigError
from rvllm_local.option import parse_bytes
from rvllm_local.options import EngineOptions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(
    file: Path, text: str = "", flags: dict[str, object] | None = None, **environ: str
) -> Config:
    file.write_text(text)
    return load_config(flags, {"RVLLM_CONFIG": str(file), **environ})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256_000_000),
        ("2GiB", 2 * 2**30),
        ("1.5 kib", 1536),
        (" 7 ", 7),
        (4096, 4096),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "MB",
        "12Q",
        "-1",
        "1e9",
        "0",
        "0.1",
        0,
        -5,
        True,
        1.5,
        None,
        "nan",
        "9" * 400,
    ],
)
def test_bad_sizes_are_named(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"size"):
        parse_bytes(bad)  # type: ignore[arg-type]


@given(st.text())
def test_no_text_breaks_the_size_parser(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_bytes(text) >= 1


def test_defaults(file: Path) -> None:
    config = load(file)
    assert config.model == "smollm2-135m"
    assert config.cache_dir.is_absolute()
    assert config.options == EngineOptions(cache_dir=str(config.cache_dir))


def test_flag_over_environment_over_file_over_default(file: Path) -> None:
    text = 'max_rows = 2\nprefill_chunk = 64\nkv_memory = "1MiB"\nself_check = false'
    options = load(
        file,
        text,
        {"max_rows": 8, "kv_memory": None},
        RVLLM_MAX_ROWS="4",
        RVLLM_PREFILL_CHUNK="128",
    ).options
    assert options.max_rows == 8
    assert options.prefill_chunk == 128
    assert options.kv_memory == 2**20
    assert not options.self_check


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_row = 3", ["max_row", "3", "known are"]),
        ("max_rows = 0", ["max_rows", "0", "at least 1"]),
        ("max_rows = true", ["max_rows", "True", "whole number"]),
        ("max_rows = 1.5", ["max_rows", "1.5", "whole number"]),
        ('model = ""', ["model", "''", "text"]),
        ("model = 3", ["model", "3", "text"]),
        ('self_check = "maybe"', ["self_check", "maybe", "true or false"]),
        ('attention = "flash"', ["attention", "flash", "auto, reference or kernels"]),
        ("attention = []", ["attention", "[]", "auto, reference or kernels"]),
        ('deterministic = "perhaps"', ["deterministic", "perhaps", "true or false"]),
        ('cache = "cloud"', ["cache", "cloud", "auto, off, memory or disk"]),
        ('kv_dtype = "int4"', ["kv_dtype", "int4", "auto or int8"]),
        ('disk_cache_bytes = "lots"', ["disk_cache_bytes", "lots", "256MB"]),
        ("step_target_ms = 0", ["step_target_ms", "0", "at least 1"]),
        ('kv_memory = "12Q"', ["kv_memory", "12Q", "256MB"]),
        ('cache_dir = "here"', ["cache_dir", "here", "absolute"]),
        ("[engine]\nmax_rows = 3", ["engine", "known are"]),
        ("max_rows =", ["cannot be read", "mend"]),
    ],
)
def test_a_bad_file_is_told_key_value_and_remedy(
    file: Path, text: str, told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert str(file) in str(caught.value)
    for part in told:
        assert part in str(caught.value)


def test_bad_flags_and_variables_are_named(file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--context-length: context_length cannot be 'long'"
    ):
        load(file, flags={"context_length": "long"})
    with pytest.raises(ConfigError, match=r"RVLLM_MAX_ROWS: max_rows cannot be '-1'"):
        load(file, RVLLM_MAX_ROWS="-1")


def test_a_file_that_was_asked_for_must_exist(file: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config({}, {"RVLLM_CONFIG": str(file)})


def test_a_cache_folder_may_start_at_home(file: Path) -> None:
    assert load(file, 'cache_dir = "~/models"').cache_dir == Path.home() / "models"
