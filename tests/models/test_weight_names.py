"""Weights and settings under older writers' names are found, fetched and told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvllm_local.errors import DownloadError, ModelFileError
from rvllm_local.models.config_file import read_config
from rvllm_local.models.describe import describe
from rvllm_local.models.hub_plan import RemoteFile, choose_files
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.safetensors_check import stale_index, weight_files
from rvllm_local.models.weight_names import weight_names
from tests.models.test_awq_gptq import AWQ, GPTQ, TOKENS, saved

OLD_NAME = "gptq_model-4bit-32g"


def moved_out(folder: Path, settings_file: str, settings: dict[str, Any]) -> None:
    """The repository as an older writer has it: settings and weights elsewhere."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    (folder / settings_file).write_text(json.dumps(settings))
    (folder / "model.safetensors").rename(folder / f"{OLD_NAME}.safetensors")


@pytest.mark.parametrize(
    ("config", "file", "settings"),
    [
        (
            GPTQ,
            "quantize_config.json",
            {
                "bits": 4,
                "group_size": 32,
                "desc_act": False,
                "sym": False,
                "damp_percent": 0.1,
            },
        ),
        (
            AWQ,
            "quant_config.json",
            {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
        ),
    ],
    ids=["gptq", "awq"],
)
def test_an_older_repository_gives_the_logits_of_its_codes(
    config: dict[str, Any], file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    expected = np.array(saved(tmp_path, config)(TOKENS))
    moved_out(tmp_path, file, settings)
    files = locate(str(tmp_path))
    assert describe(files).weights_bytes > 0
    logits = np.array(load_model(files).module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_settings_in_the_configuration_come_first(tmp_path: Path) -> None:
    saved(tmp_path, GPTQ)
    (tmp_path / "quantize_config.json").write_text('{"bits": 3}')
    assert read_config(tmp_path)["quantization_config"] == GPTQ


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
            {"quant_method": "modelopt", "quant_algo": "FP8"},
        ),
        (
            "hf_quant_config.json",
            {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}},
            None,
        ),
        (
            "quantize_config.json",
            {"w_bit": 4, "q_group_size": 128},
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 128},
        ),
        ("hf_quant_config.json", {"quantization": 3}, {"quant_method": "modelopt"}),
        (
            "config.json",
            {"compression_config": {"quant_method": "compressed-tensors"}},
            {"quant_method": "compressed-tensors"},
        ),
        ("config.json", {}, None),
    ],
)
def test_what_other_writers_say_of_a_packing(
    file: str, content: Any, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(content))
    assert read_config(tmp_path).get("quantization_config") == expected


@pytest.mark.parametrize(
    ("names", "expected", "index"),
    [
        (["model.safetensors", "other.safetensors"], ["model.safetensors"], None),
        (
            [f"{OLD_NAME}.safetensors", "adapter_model.safetensors"],
            [f"{OLD_NAME}.safetensors"],
            None,
        ),
        (
            [
                "q-00001-of-00002.safetensors",
                "q-00002-of-00002.safetensors",
                "q.safetensors.index.json",
            ],
            ["q-00001-of-00002.safetensors", "q-00002-of-00002.safetensors"],
            "q.safetensors.index.json",
        ),
        (["a.safetensors", "b.safetensors"], [], None),
        (["consolidated.safetensors", "params.json"], [], None),
        (["folder/model.safetensors", "../x.safetensors"], [], None),
    ],
)
def test_which_names_are_weights(
    names: list[str], expected: list[str], index: str | None
) -> None:
    found = weight_names(names)
    assert (list(found.files), found.index) == (expected, index)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["4bit-32g.safetensors", "4bit-128g.safetensors"],
            "several models, 4bit-128g, 4bit-32g: keep one",
        ),
        (["consolidated.safetensors"], "Mistral's own names"),
        (["gptq_model-4bit-128g.pt"], r"\(gptq_model-4bit-128g\.pt\).*save_pretrained"),
        ([], "no model\\*.safetensors files$"),
    ],
)
def test_a_folder_without_weights_says_why(
    names: list[str], words: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match=words):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, OLD_NAME),
        ({"model_file_base_name": "Wizard-4bit.act"}, "Wizard-4bit.act"),
    ],
)
def test_settings_name_one_of_several_models(
    more: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """Also beside `model.safetensors`, which may be the unpacked one."""
    expected = np.array(saved(tmp_path, GPTQ)(TOKENS))
    settings = {"bits": 4, "group_size": 32, "desc_act": False, **more}
    moved_out(tmp_path, "quantize_config.json", settings)
    (tmp_path / f"{OLD_NAME}.safetensors").rename(tmp_path / f"{name}.safetensors")
    for other in ("model", "gptq_model-4bit-128g"):
        (tmp_path / f"{other}.safetensors").write_bytes(b"x")
    logits = np.array(load_model(locate(str(tmp_path))).module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_packing_of_the_text_part_comes_first(tmp_path: Path) -> None:
    text = {"text_config": {"quantization_config": {"quant_method": "fp8"}}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {}}')
    assert read_config(tmp_path) == text


def test_a_repository_of_pickles_names_one() -> None:
    files = offered("config.json", "gptq_model-4bit-128g.pt")
    with pytest.raises(DownloadError, match=r"only pickled weights \(gptq_model-4bit"):
        choose_files("owner/name", files)


def test_a_part_of_an_older_model_that_is_missing_is_named(tmp_path: Path) -> None:
    saved(tmp_path, GPTQ)
    (tmp_path / "model.safetensors").rename(tmp_path / "q-00001-of-00002.safetensors")
    with pytest.raises(ModelFileError, match="weight file 2 of 2 is missing"):
        weight_files(tmp_path)
    (tmp_path / "q.safetensors.index.json").write_text(
        '{"weight_map": {"x": "q-00002-of-00002.safetensors"}}'
    )
    assert stale_index(tmp_path) == "q.safetensors.index.json"


def offered(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 10, sha256="0" * 64) for name in names]


def test_an_older_repository_is_fetched_with_its_settings() -> None:
    weights = f"{OLD_NAME}.safetensors"
    files = offered("config.json", "quantize_config.json", weights, "README.md", "x.py")
    chosen = [file.name for file in choose_files("owner/old", files)]
    assert sorted(chosen) == ["config.json", weights, "quantize_config.json"]


def test_a_repository_of_several_models_names_them() -> None:
    files = offered("config.json", "4bit-32g.safetensors", "4bit-128g.safetensors")
    with pytest.raises(DownloadError, match="several models, 4bit-128g, 4bit-32g"):
        choose_files("owner/old", files)
