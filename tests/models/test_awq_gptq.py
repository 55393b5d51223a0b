"""Repositories that AWQ and GPTQ packed give the logits of what their codes stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.llm import LLM
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import load_model, open_native
from rvllm_local.models.locate import locate
from rvllm_local.types import SamplingParams
from tests.models.test_eight_bits import Array, Pack
from tests.models.test_eight_bits import saved as saved_by
from tests.support.foreign_packing import Coded, awq, gptq
from tests.support.tiny import save_tokenizer, tiny_model

TOKENS = mx.array([[5, 6, 7, 9, 11, 300]])
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}  # fmt: skip
V2 = {**GPTQ, "checkpoint_format": "gptq_v2"}


def saved(
    folder: Path, config: dict[str, Any], arch: str = "llama", **how: Any
) -> nn.Module:
    """Write a packed repository; returns the model that its codes stand for."""
    model, model_config = tiny_model(arch)
    dense, stored = {}, {}
    for name, value in tree_flatten(model.parameters()):
        dense[name] = np.array(value)
        stored[name] = value.astype(mx.float16)
    for seed, name in enumerate(sorted(dense)):
        if not name.endswith("proj.weight"):
            dense[name] = np.array(stored[name].astype(mx.float32))
            continue
        outputs, inputs = dense[name].shape
        layer = Coded.random(inputs, outputs, seed=seed, **how)
        dense[name] = layer.weight.astype(np.float32)
        del stored[name]
        for part, values in parts(layer, config).items():
            stored[f"{name.removesuffix('weight')}{part}"] = mx.array(values)
    settings = {**model_config, "quantization_config": config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    save_tokenizer(folder)
    values = [(name, mx.array(value)) for name, value in dense.items()]
    model.update(tree_unflatten(values))
    return model


def parts(layer: Coded, config: dict[str, Any]) -> dict[str, Any]:
    if config["quant_method"] == "awq":
        return awq(layer)
    return gptq(layer, 2 if config.get("checkpoint_format") == "gptq_v2" else 1)


CASES = {
    "awq": (AWQ, {}),
    "awq, one name for the layout": ({**AWQ, "version": "GEMM"}, {}),
    "awq, older names": (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": True},
        {},
    ),
    "gptq": (GPTQ, {}),
    "gptq, symmetric": ({**GPTQ, "sym": True}, {"symmetric": True}),
    "gptq v2": (V2, {}),
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, {"bits": 8}),
    "gptq, 2 bits": ({**V2, "bits": 2}, {"bits": 2}),
    "gptq, one group": ({**GPTQ, "group_size": -1}, {"group": 32}),
    "gptq, act-order": ({**GPTQ, "desc_act": True}, {"by_activation": True}),
    "gptq v2, act-order in 8 bits": (
        {**V2, "desc_act": True, "bits": 8},
        {"by_activation": True, "bits": 8},
    ),
    "gptq, act-order that changes no order": ({**GPTQ, "desc_act": True}, {}),
    "gptq, layers of other bits": (GPTQ, {"bits": 8}),
}


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_codes(name: str, packs: bool, tmp_path: Path) -> None:
    config, how = CASES[name]
    model = saved(tmp_path, config, **how)
    expected = np.array(model(TOKENS))
    loaded = load_model(locate(str(tmp_path)), packs=packs)
    assert loaded.packs == (packs and "by_activation" not in how)
    logits = np.array(loaded.module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", [AWQ, GPTQ, V2], ids=["awq", "gptq", "v2"])
def test_other_families_and_whole_groups(
    config: dict[str, Any], tmp_path: Path
) -> None:
    for arch in ("qwen2", "mistral", "gemma2"):
        folder = tmp_path / arch
        expected = np.array(saved(folder, config, arch)(TOKENS))
        loaded = load_model(locate(str(folder)))
        logits = np.array(loaded.module(TOKENS))
        assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def in_words(config: dict[str, Any]) -> Pack:
    """Packs a matrix `[out, in]`; one whose inputs do not make groups stays as it is."""

    def pack(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        outputs, inputs = matrix.shape
        if inputs % 32 or outputs % 8:
            return matrix, {"weight": matrix}
        layer = Coded.random(inputs, outputs, seed=seed)
        return layer.weight, parts(layer, config)

    return pack


@pytest.mark.parametrize("config", [AWQ, GPTQ, V2], ids=["awq", "gptq", "v2"])
@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_experts_are_those_of_the_codes(
    arch: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = saved_by(tmp_path, config, in_words(config), arch)
    expected = np.array(model(TOKENS))
    files = locate(str(tmp_path))
    stacked = []
    for path, layer in open_native(files).module.named_modules():
        if "switch_mlp" in path:
            stacked.append(type(layer).__name__)
    assert "QuantizedSwitchLinear" in stacked
    logits = np.array(load_model(files).module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_gpu_keeps_codes_and_types(tmp_path: Path) -> None:
    """A symmetric zero is a power of two: its offset is exact in half precision."""
    model = saved(tmp_path, {**GPTQ, "sym": True}, symmetric=True)
    native = open_native(locate(str(tmp_path)))
    layer: nn.Module = native.module.layers[0].mlp.up_proj
    assert (layer.weight.dtype, layer.scales.dtype) == (mx.uint32, mx.float16)
    assert (layer.bits, layer.group_size, layer.mode) == (4, 32, "affine")
    wide = [part.astype(mx.float32) for part in (layer.scales, layer.biases)]
    values = mx.dequantize(layer.weight, *wide, layer.group_size, layer.bits)
    np.testing.assert_array_equal(
        np.array(values), np.array(model.layers[0].mlp.up_proj.weight)
    )


def test_it_is_planned_and_answers_packed(tmp_path: Path) -> None:
    saved(tmp_path, AWQ)
    assert describe(locate(str(tmp_path))).packed_bytes is not None
    greedy = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    texts = []
    for form in ("auto", "float32"):
        with LLM(str(tmp_path), kv_memory="8MB", cpu_weights=form) as llm:
            (answer,) = llm.generate(["the"], greedy)
            texts.append(answer.token_ids)
    assert len(texts[0]) == len(texts[1]) == 6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**AWQ, "version": "gemv"}, "layout 'gemv'.*take a conversion"),
        ({**AWQ, "version": "marlin"}, "layout 'marlin'"),
        ({**AWQ, "version": "exllama"}, "layout 'exllama'"),
        ({**AWQ, "bits": 8}, "8 bits, and 4 are read"),
        ({**AWQ, "group_size": 48}, "groups of 48"),
        ({**GPTQ, "bits": 3}, "3 bits, and 2 or 4 or 8 are read"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "layout 'marlin'"),
        ({**GPTQ, "group_size": 0}, "groups of 0"),
        ({**GPTQ, "group_size": None}, "groups of None"),
    ],
)
def test_other_layouts_are_refused_by_name(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    saved(tmp_path, config)
    for read in (describe, load_model):
        with pytest.raises(UnsupportedModelError, match=words):
            read(locate(str(tmp_path)))


def change(folder: Path, name: str, value: Any) -> None:
    path = str(folder / "model.safetensors")
    weights = dict(mx.load(path))
    mx.eval(weights)
    del weights[name]
    if value is not None:
        weights[name] = mx.array(value)
    mx.save_safetensors(path, weights)


LAYER = "model.layers.1.mlp.up_proj"


def test_inputs_in_another_order_than_the_configuration_says(tmp_path: Path) -> None:
    saved(tmp_path, GPTQ)
    change(tmp_path, f"{LAYER}.g_idx", np.arange(64, dtype=np.int32) % 2)
    words = r"up_proj.g_idx groups .* by activation, and config.json's .*desc_act"
    with pytest.raises(ModelFileError, match=words):
        load_model(locate(str(tmp_path)))


def test_the_plan_knows_that_act_order_makes_floats(tmp_path: Path) -> None:
    saved(tmp_path, {**GPTQ, "desc_act": True}, by_activation=True)
    files = locate(str(tmp_path))
    described = describe(files)
    assert described.packed_bytes is None
    assert described.weights_bytes >= load_model(files, packs=True).weights_bytes


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("qzeros", None),
        ("scales", None),
        ("scales", np.ones((3, 96), dtype=np.float16)),
        ("scales", np.ones((2, 8), dtype=np.float16)),
        ("qzeros", np.zeros((2, 2), dtype=np.int32)),
        ("g_idx", np.arange(60, dtype=np.int32)),
        ("g_idx", np.arange(64, dtype=np.int32)),
        ("g_idx", np.arange(64, dtype=np.int32) - 1),
        ("qweight", np.zeros((7, 96), dtype=np.int32)),
        ("qweight", np.zeros(96, dtype=np.int32)),
    ],
)
def test_parts_that_do_not_go_together_name_the_layer(
    part: str, value: Any, tmp_path: Path
) -> None:
    saved(tmp_path, GPTQ)
    change(tmp_path, f"{LAYER}.{part}", value)
    with pytest.raises(RvllmError, match=r"up_proj|gptq") as caught:
        load_model(locate(str(tmp_path)))
    assert isinstance(caught.value, ModelFileError | UnsupportedModelError)
