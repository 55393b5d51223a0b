"""GGUF models in several files are one model, and a file at another's place is refused."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.models.describe import describe
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.gguf import (
    UINT16,
    llama_metadata,
    llama_tensors,
    split_gguf,
    write_gguf,
)

TOKENS = mx.array([[3, 14, 15, 92, 65]])


def write_parts(folder: Path, parts: list[bytes]) -> list[Path]:
    paths = []
    for number, data in enumerate(parts, start=1):
        path = folder / f"tiny-{number:05}-of-{len(parts):05}.gguf"
        path.write_bytes(data)
        paths.append(path)
    return paths


def test_any_part_opens_the_whole_model(tmp_path: Path) -> None:
    tensors = llama_tensors()[0]
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(write_gguf(llama_metadata(), tensors))
    expected = np.array(load_model(locate(str(whole))).module(TOKENS))
    paths = write_parts(tmp_path, split_gguf(llama_metadata(), tensors, 3))
    for path in (paths[0], paths[2]):
        files = locate(str(path))
        assert files.name == "tiny"
        assert files.weight_paths() == paths
        loaded = load_model(files)
        np.testing.assert_array_equal(np.array(loaded.module(TOKENS)), expected)
    stored = sum(path.stat().st_size for path in paths)
    assert describe(locate(str(paths[0])), None).weights_bytes > 0
    assert stored == sum(path.stat().st_size for path in files.weight_paths())


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    parts = split_gguf(llama_metadata(), llama_tensors()[0], 3)
    paths = write_parts(tmp_path, parts)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match="tiny-00002-of-00003"):
        GGUFFile(paths[0])


def test_names_and_keys_must_agree_on_the_place(tmp_path: Path) -> None:
    parts = split_gguf(llama_metadata(), llama_tensors()[0], 3)
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(parts[0])
    with pytest.raises(ModelFileError, match=r"one of 3 parts, and its name that .* 1"):
        GGUFFile(alone)
    swapped = write_parts(tmp_path, [parts[0], parts[2], parts[1]])
    with pytest.raises(ModelFileError, match=r"part 2.*and its name that it is part 1"):
        GGUFFile(swapped[0])


def test_tensors_of_two_parts_are_counted(tmp_path: Path) -> None:
    tensors = llama_tensors()[0]
    first, second = split_gguf(llama_metadata(), tensors, 2)
    keys = {"split.no": (UINT16, 1), "split.count": (UINT16, 2)}
    doubled = write_gguf(keys, tensors[::2])
    with pytest.raises(ModelFileError, match="is in another part as well"):
        GGUFFile(write_parts(tmp_path, [first, doubled])[0])
    fewer = write_gguf(keys, tensors[3::2])
    with pytest.raises(ModelFileError, match=r"split\.tensors.count"):
        GGUFFile(write_parts(tmp_path, [first, fewer])[0])
    assert len(GGUFFile(write_parts(tmp_path, [first, second])[1]).tensors) == len(
        tensors
    )
