"""Quantized models on a CPU stay quantized where that is proven, and are widened where it is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local import LLM, SamplingParams
from rvllm_local.engine.startup import packed_runner, weight_forms
from rvllm_local.engine.startup.packed_runner import divergence
from rvllm_local.errors import ModelFileError
from rvllm_local.machine import is_on_cpu
from tests.support.tiny import save_tiny, tiny_model

pytestmark = pytest.mark.skipif(not is_on_cpu(), reason="weights are packed on CPUs")

GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
PROMPTS = [[5, 9, 100, 7, 60, 31], [11] * 40, [200, 3]]


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny model with quantized weights."""

    def save(arch: str, bits: int = 8, spoil: Any = None) -> Path:
        folder = save_tiny(arch, tmp_path / arch)
        model, config = tiny_model(arch)
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = dict(tree_flatten(model.parameters()))
        if spoil is not None:
            spoil(weights)
        path = folder / "model.safetensors"
        mx.save_safetensors(str(path), weights, {"format": "mlx"})
        return folder

    return save


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of other starts are not seen."""
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path / "cache"))


def opened(folder: Path, **options: Any) -> LLM:
    cache_dir = folder.parent / "cache"
    return LLM(str(folder), kv_memory="8MB", cache_dir=str(cache_dir), **options)


def texts(llm: LLM) -> list[list[int]]:
    return [list(answer.token_ids) for answer in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_decoder_is_served_by_whole_steps(
    arch: str, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(arch)
    with opened(folder) as llm:
        assert llm.stats()["weights"] == "quantized"
        assert llm.stats()["attention_backend"] == "onnxruntime"
        assert all(texts(llm))
    with opened(folder) as llm:  # by the note of the first start
        assert llm.stats()["weights"] == "quantized"
        assert all(texts(llm))


def test_other_definitions_are_packed_layer_by_layer(
    folder_of: Callable[..., Path],
) -> None:
    with opened(folder_of("gemma2")) as llm:
        assert llm.stats()["weights"] == "quantized, layer by layer"
        assert all(texts(llm))


def test_int8_keys_and_values_go_layer_by_layer(folder_of: Callable[..., Path]) -> None:
    with opened(folder_of("llama"), kv_dtype="int8") as llm:
        assert llm.stats()["attention_backend"] == "reference"
        assert all(texts(llm))


@pytest.mark.parametrize(
    "options", [{"cpu_weights": "float32"}, {"deterministic": True}]
)
def test_float32_where_it_is_asked_for(
    options: dict[str, Any], folder_of: Callable[..., Path]
) -> None:
    with opened(folder_of("llama"), **options) as llm:
        assert llm.stats()["weights"] == "float32"


def test_without_onnxruntime_weights_are_widened_with_one_warning(
    folder_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        weight_forms, "missing_runtime", lambda: "onnxruntime is not here: install it"
    )
    with caplog.at_level(logging.WARNING), opened(folder_of("llama")) as llm:
        assert llm.stats()["weights"] == "float32"
    assert [record.getMessage() for record in caplog.records] == [
        "onnxruntime is not here: install it"
    ]


def test_a_form_that_predicts_otherwise_gives_way_to_the_next(
    folder_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    verdicts: Iterator[float] = iter([0.0, 5.0, 0.0, 5.0])
    monkeypatch.setattr(packed_runner, "divergence", lambda *_: next(verdicts, 5.0))
    with caplog.at_level(logging.WARNING), opened(folder_of("llama")) as llm:
        assert llm.stats()["weights"] == "float32"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    for form, message in zip(("step", "layers"), messages, strict=True):
        assert message.startswith(f"weights are not held as {form}: ")
        assert "diverge by 5 nats" in message


def test_scales_that_are_no_numbers_are_refused(folder_of: Callable[..., Path]) -> None:
    name = "model.layers.1.self_attn.q_proj.scales"

    def spoil(weights: dict[str, mx.array]) -> None:
        weights[name][3, 1] = float("nan")

    with pytest.raises(ModelFileError, match=rf"'{name}' holds values that are not"):
        opened(folder_of("llama", spoil=spoil))


def test_scales_of_another_shape_are_refused(folder_of: Callable[..., Path]) -> None:
    name = "model.layers.1.mlp.up_proj.scales"

    def spoil(weights: dict[str, mx.array]) -> None:
        weights[name] = weights[name][:, :1]

    with pytest.raises(ModelFileError, match="do not fit the configuration"):
        opened(folder_of("llama", spoil=spoil))


def test_divergence_is_that_of_the_predictions() -> None:
    logits = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]], dtype=np.float32)
    assert divergence([logits], [logits + 7]) == pytest.approx(0, abs=1e-6)
    certain = np.array([[50.0, 0.0]], dtype=np.float32)
    even = np.zeros((1, 2), dtype=np.float32)
    assert divergence([certain], [even]) == pytest.approx(np.log(2), rel=1e-6)
