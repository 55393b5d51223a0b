"""Heads for several tokens, held against their definition in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.head_forms import head_config
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import describe_head, load_head
from rvllm_local.models.sharding import parameter_bytes
from tests.support.head_definitions import definition
from tests.support.heads import WITH_HEADS, save_with_head
from tests.support.tiny import save_tiny
from tests.support.zoo import zoo_config

TOKENS = [5, 80, 33, 7, 9, 200, 11]


@pytest.mark.parametrize("arch", WITH_HEADS)
def test_a_head_computes_what_its_definition_says(arch: str, tmp_path: Path) -> None:
    folder = save_with_head(arch, tmp_path)
    files = locate(str(folder))
    head = load_head(files, load_model(files)).module
    states = np.random.default_rng(5).standard_normal((len(TOKENS), 64))
    head.model.embed_tokens.give(mx.array(states.astype(np.float32)))
    computed = np.array(head(mx.array([TOKENS])))[0]
    expected = definition(arch, folder).logits(TOKENS, states)
    assert np.abs(computed - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("arch", WITH_HEADS)
def test_a_model_loads_without_its_head(arch: str, tmp_path: Path) -> None:
    """Definitions leave it out, one of them at its family's first depth alone."""
    folder = save_with_head(arch, tmp_path)
    module = load_model(locate(str(folder))).module
    config = zoo_config(arch)
    config = config.get("text_config", config)
    assert len(module.layers) == config["num_hidden_layers"]


@pytest.mark.parametrize("arch", ["glm4_moe", "deepseek_v3", "qwen3_5", "qwen3_next"])
def test_a_head_takes_what_was_planned(arch: str, tmp_path: Path) -> None:
    """Its embedding and its output are the model's, and counted there."""
    files = locate(str(save_with_head(arch, tmp_path)))
    loaded = load_model(files)
    head = load_head(files, loaded)
    own = parameter_bytes(head.module)
    if arch != "qwen3_5":  # whose output is the embedding
        assert head.module.lm_head.weight is loaded.module.lm_head.weight
        own -= head.module.lm_head.weight.nbytes
    assert describe_head(loaded.config).weights_bytes == head.weights_bytes == own
    names = dict(tree_flatten(head.module.model.parameters()))
    assert "embed_tokens.eh_proj.weight" in names
    assert len(head.module.layers) == 1


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    files = locate(str(save_tiny("llama", tmp_path / "llama")))
    with pytest.raises(UnsupportedModelError, match="this is a llama model"):
        load_head(files, load_model(files))
    files = locate(str(save_with_head("glm4_moe", tmp_path / "glm")))
    config = {**load_model(files).config, "num_nextn_predict_layers": 0}
    with pytest.raises(UnsupportedModelError, match="num_nextn_predict_layers = 0"):
        head_config(config)


@pytest.mark.parametrize(
    ("arch", "prefix"), [("glm4_moe", "model.layers.4."), ("qwen3_next", "mtp.")]
)
def test_a_converter_that_left_the_head_out_is_named(
    arch: str, prefix: str, tmp_path: Path
) -> None:
    folder = save_with_head(arch, tmp_path)
    change(folder, lambda name, value: None if name.startswith(prefix) else value)
    files = locate(str(folder))
    with pytest.raises(UnsupportedModelError, match="has left them out"):
        load_head(files, load_model(files))


@pytest.mark.parametrize("kept_raw", ["none", "all but the last", "all"])
def test_norms_of_a_converted_head_are_told_by_their_values(
    kept_raw: str, tmp_path: Path
) -> None:
    """Converters add 1 to the model's norms, and to a head's or not."""
    folder = save_with_head("qwen3_5", tmp_path)
    published = load_head_at(folder)
    converted = {
        "none": ("mtp.",),
        "all but the last": ("mtp.norm.",),
        "all": (),
    }[kept_raw]

    def convert(name: str, value: mx.array) -> mx.array:
        if "conv1d" in name:
            return value.moveaxis(2, 1)
        of_head = name.startswith("mtp.")
        is_norm = value.ndim == 1 and "norm" in name and "linear_attn" not in name
        if is_norm and (not of_head or name.startswith(converted)):
            return value + 1.0
        return value

    change(folder, convert)
    for name, value in load_head_at(folder).items():
        assert mx.allclose(value, published[name], atol=1e-6), name


@pytest.mark.parametrize("arch", ["qwen3_5", "deepseek_v3"])
def test_a_head_in_a_quantized_model_is_read_as_it_is_packed(
    arch: str, tmp_path: Path
) -> None:
    folder = save_with_head(arch, tmp_path)
    plain = load_head_at(folder)
    prefix = "mtp." if arch == "qwen3_5" else "model.layers.4."
    joint = "fc.weight" if arch == "qwen3_5" else "eh_proj.weight"
    weights = dict(mx.load(str(folder / "model.safetensors")))
    packed, scales, biases = mx.quantize(weights[prefix + joint], 64, 8)
    weights[prefix + joint] = packed
    stem = prefix + joint.removesuffix("weight")
    weights |= {f"{stem}scales": scales, f"{stem}biases": biases}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    plan = {"group_size": 64, "bits": 8}
    path.write_text(json.dumps({**config, "quantization": plan}))
    for name, value in load_head_at(folder).items():
        tolerance = 0.02 if "eh_proj" in name else 0
        assert mx.abs(value - plain[name]).max().item() <= tolerance, name


def load_head_at(folder: Path) -> dict[str, mx.array]:
    files = locate(str(folder))
    head = load_head(files, load_model(files)).module
    return dict(tree_flatten(head.parameters()))


def change(folder: Path, changed: Callable[[str, mx.array], mx.array | None]) -> None:
    """Write a folder's weights anew; None leaves one out."""
    path = str(folder / "model.safetensors")
    kept = {}
    for name, value in dict(mx.load(path)).items():
        result = changed(name, value)
        if result is not None:
            kept[name] = mx.contiguous(result)
    mx.eval(kept)
    mx.save_safetensors(path, kept, {"format": "mlx"})
