"""Sampling that a model's makers recommend: taken for what nobody stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.models.own_sampling import OwnSampling, own_sampling
from rvllm_local.server.api.common import stated_sampling
from rvllm_local.server.api.openai.schema import ChatRequest
from rvllm_local.types import SamplingParams
from tests.support.gguf import FLOAT32, INT32, llama_metadata, llama_tensors, write_gguf
from tests.support.tiny import save_tiny


def files_with(folder: Path, settings: dict[str, Any]) -> ModelFiles:
    path = save_tiny("llama", folder / "tiny")
    (path / "generation_config.json").write_text(json.dumps(settings))
    return locate(str(path))


def test_the_generation_settings_are_the_models_own(tmp_path: Path) -> None:
    settings = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True}
    own = own_sampling(files_with(tmp_path, settings))
    assert own.values == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert own.source == "generation_config.json"
    params = own.applied(SamplingParams(temperature=1.5), {"temperature"})
    assert (params.temperature, params.top_p, params.top_k) == (1.5, 0.95, 20)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": float("nan")},
        {"top_k": float("inf")},
        {"min_p": None},
    ],
)
def test_what_is_no_value_is_left_out(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert own_sampling(files_with(tmp_path, settings)).values == {}


def test_the_default_model_has_the_catalogues() -> None:
    files = locate("smollm2-135m")
    own = own_sampling(files)
    assert own.values == {"temperature": 0.2, "top_p": 0.9}
    assert own.source == "the catalogue"
    assert own_sampling(locate(str(files.path))).values == own.values


def test_a_gguf_file_may_say_it(tmp_path: Path) -> None:
    keys = {
        "general.sampling.temp": (FLOAT32, 0.5),
        "general.sampling.top_k": (INT32, 40),
    }
    path = tmp_path / "tiny.gguf"
    path.write_bytes(write_gguf(llama_metadata(**keys), llama_tensors()[0]))
    own = own_sampling(locate(str(path)))
    assert own.values == {"temperature": 0.5, "top_k": 40}
    assert own.source == "the GGUF file"


def test_a_request_states_what_it_sets() -> None:
    request = ChatRequest(model="m", messages=[], temperature=0.0)
    assert stated_sampling(request) == {"temperature"}
    own = OwnSampling({"temperature": 0.2, "top_p": 0.9}, "the catalogue")
    params = own.applied(SamplingParams(temperature=0.0), stated_sampling(request))
    assert (params.temperature, params.top_p) == (0.0, 0.9)
