"""Conversion: what is written loads, weighs what it should and costs what is told; bad wishes are refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local import LLM, SamplingParams, cli
from rvllm_local.commands.convert import convert_model, quantization
from rvllm_local.errors import ModelFileError, ParameterError, UnsupportedModelError
from rvllm_local.models.bundle import open_bundle
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.perplexity import bundled_text, perplexity
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("source") / "tiny")


@pytest.mark.parametrize(
    ("bits", "mode", "recipe", "expected"),
    [
        (
            4,
            "affine",
            None,
            6.0,
        ),  # 4 bits, and a scale and a bias of 32 bits for 32 weights
        (8, "affine", None, 10.0),
        (None, "mxfp4", None, 4.25),
        (None, "affine", "mixed_4_6", 6.5),
    ],
)
def test_a_converted_model_answers(
    source: Path,
    tmp_path: Path,
    bits: int | None,
    mode: str,
    recipe: str | None,
    expected: float,
) -> None:
    done = convert_model(
        locate(str(source)), tmp_path / "out", quantization(bits, 32, mode, recipe)
    )
    assert done.bits_per_weight == pytest.approx(expected, rel=0.15)
    assert done.before is not None
    assert done.after is not None
    assert math.isfinite(done.before)
    assert math.isfinite(done.after)
    if bits == 8:
        assert done.after == pytest.approx(done.before, rel=0.05)
    with LLM(str(done.path), kv_memory="8MB") as llm:
        (answer,) = llm.generate(
            "hello", SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        )
    assert len(answer.token_ids) == 4


def test_a_bundle_says_how_it_was_made(source: Path, tmp_path: Path) -> None:
    done = convert_model(
        locate(str(source)),
        tmp_path / "out.rvllm",
        quantization(4, 32, "affine", None),
        bundle=True,
        measure=False,
    )
    manifest = open_bundle(done.path, verify=True)
    assert manifest.recipe["quantization"] == {
        "bits": 4,
        "group_size": 32,
        "mode": "affine",
    }
    assert (done.before, done.after) == (None, None)
    assert load_model(locate(str(done.path))).vocab_size == 384


def test_what_is_quantized_or_there_is_refused(source: Path, tmp_path: Path) -> None:
    wanted = quantization(4, None, "affine", None)
    convert_model(locate(str(source)), tmp_path / "once", wanted, measure=False)
    with pytest.raises(ModelFileError, match="exists already"):
        convert_model(locate(str(source)), tmp_path / "once", wanted, measure=False)
    with pytest.raises(UnsupportedModelError, match="4-bit weights already"):
        convert_model(
            locate(str(tmp_path / "once")), tmp_path / "twice", wanted, measure=False
        )
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ((7, None, "affine", None), "bits is 7"),
        ((None, 48, "affine", None), "group_size is 48"),
        ((0, None, "affine", None), "bits is 0"),
        ((4, 0, "affine", None), "group_size is 0"),
        ((8, None, "mxfp4", None), "mxfp4 has 4 bits"),
        ((4, None, "affine", "mixed_4_6"), "chooses bits by itself"),
        ((None, None, "affine", "mixed"), "mixed_2_6"),
        ((None, None, "gptq", None), "mode is 'gptq'"),
    ],
)
def test_wishes_that_do_not_go_together(
    wish: tuple[int | None, int | None, str, str | None], told: str
) -> None:
    with pytest.raises(ParameterError, match=told):
        quantization(*wish)


def test_the_verb(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "verb"
    assert (
        cli.main(["convert", str(source), "-o", str(target), "--bits", "8", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(target)
    assert told["perplexity"]["after"] == pytest.approx(
        told["perplexity"]["before"], rel=0.05
    )
    assert cli.main(["convert", str(source), "--bits", "9"]) == 2
    assert "bits is 9" in capsys.readouterr().err


class Uniform(nn.Module):
    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.zeros((*tokens.shape, 50))


def test_perplexity_of_guessing_is_the_size_of_the_vocabulary() -> None:
    assert perplexity(Uniform(), list(range(50)) * 30) == pytest.approx(50)
    assert math.isnan(perplexity(Uniform(), [1]))
    assert len(bundled_text().split()) > 500
