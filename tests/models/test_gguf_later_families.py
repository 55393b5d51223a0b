"""Families that came later to GGUF: the same logits as the model that was converted.

The `gguf` package names the tensors and writes the files. What llama.cpp's converter does
to weights is done here again, by its description.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import RvllmError, UnsupportedModelError
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.gguf import permute
from tests.support.gguf_families import (
    ARCHITECTURE_OF,
    FAMILIES,
    KEYS,
    PERMUTED,
    RENAMED,
    SUFFIXES,
)
from tests.support.packed_gguf import packed_module
from tests.support.zoo import zoo_model

TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38] * 4])
Array = npt.NDArray[Any]
# What no converter quantizes.
_FLOATS = (
    "ffn_gate_inp.weight",
    "ssm_conv1d.weight",
    "ssm_norm.weight",
    "ssm_a",
    "ssm_d",
)


def model_of(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A tiny model, its configuration and that of its text part."""
    family, settings = FAMILIES[name]
    mx.random.seed(1)
    module, config = zoo_model(family)
    if "text_config" in config:
        settings = {"text_config": {**config["text_config"], **settings}}
    if settings:
        weights = dict(tree_flatten(module.parameters()))
        config = {**config, **settings}
        module = build_model(config)
        for key, value in tree_flatten(module.parameters()):
            if key not in weights or weights[key].shape != value.shape:
                weights[key] = mx.random.normal(value.shape) * 0.1
        names = {key for key, _ in tree_flatten(module.parameters())}
        module.load_weights([(key, weights[key]) for key in sorted(names)])
        module.set_dtype(mx.float32)
    return module, config, config.get("text_config", config)


def write(folder: Path, name: str, quantize: bool = False) -> tuple[Path, nn.Module]:
    module, config, text = model_of(name)
    arch_name = ARCHITECTURE_OF.get(name, name)
    arch = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[arch_name]
    layers = text["num_hidden_layers"]
    names = gguf.get_tensor_name_map(arch, layers)
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, arch_name)
    extra = KEYS.get(name, {})
    writer.add_block_count(layers + extra.get("nextn_predict_layers", 0))
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text.get("intermediate_size", 48))
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(text.get("norm_epsilon", 1e-6))
    writer.add_rope_freq_base(_base(text))
    writer.add_token_list([f"t{index}" for index in range(config["vocab_size"])])
    if text.get("head_dim"):
        writer.add_key_length(text["head_dim"])
        writer.add_value_length(text["head_dim"])
    for key, value in extra.items():
        _add(writer, f"{arch_name}.{key}", value)
    parameters = dict(tree_flatten(module.parameters()))
    for mlx_name, value in parameters.items():
        weight = np.array(value)
        if "switch_glu.up_proj" in mlx_name:
            continue  # the converter writes it behind the other one
        if "switch_glu.gate_proj" in mlx_name:
            up = parameters[mlx_name.replace("gate_proj", "up_proj")]
            weight = np.concatenate([weight, np.array(up)], axis=1)
        if "shared_mlp.input_linear" in mlx_name:
            halves = zip(("gate", "up"), np.split(weight, 2), strict=True)
            for part, half in halves:
                layer = mlx_name.split(".")[2]
                _put(writer, f"blk.{layer}.ffn_{part}_shexp.weight", half, quantize)
            continue
        _add_tensor(writer, names, name, mlx_name, weight, text, quantize)
    if name == "gemma4":
        # Published weights have keys of layers that take those of others.
        unused = np.ones(64, dtype=np.float32)
        writer.add_tensor("blk.3.attn_k_norm.weight", unused)
    if arch_name == "gemma4":
        factors = np.array([1.0] * 8 + [1e30] * 24, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    if "nextn_predict_layers" in extra:
        behind = np.ones((2, 2), dtype=np.float32)
        writer.add_tensor(f"blk.{layers}.nextn.eh_proj.weight", behind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, module


def _base(text: dict[str, Any]) -> float:
    rotation = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rotation = rotation.get("full_attention", rotation)
    return float(text.get("rope_theta") or rotation["rope_theta"])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_float32(key, value)


def _add_tensor(
    writer: gguf.GGUFWriter,
    names: gguf.TensorNameMap,
    name: str,
    mlx_name: str,
    weight: Array,
    text: dict[str, Any],
    quantize: bool,
) -> None:
    mlx_name = mlx_name.removeprefix("language_model.")
    tensor = names.get_name(mlx_name, try_suffixes=(".weight", ".bias"))
    for part, gguf_name in RENAMED.items():
        if part in mlx_name:
            suffix = SUFFIXES.get(gguf_name, ".weight")
            if mlx_name.endswith("scale"):
                suffix = ".scale"
            tensor = f"blk.{mlx_name.split('.')[2]}.{gguf_name}{suffix}"
    assert tensor is not None, mlx_name
    if name in PERMUTED and mlx_name.endswith("q_proj.weight"):
        weight = permute(weight, text["num_attention_heads"])
    if name in PERMUTED and mlx_name.endswith("k_proj.weight"):
        weight = permute(weight, text["num_key_value_heads"])
    if mlx_name.endswith("shared_expert_gate.weight"):
        weight = weight[0]
    if "conv.conv" in mlx_name:
        weight = weight[..., 0]
    tensor = tensor.replace(
        "ssm_conv1d.weight", f"ssm_conv1d.{mlx_name.rpartition('.')[2]}"
    )
    if ".mamba." in mlx_name:
        weight = _as_mamba2(mlx_name, weight)
    if "linear_attn" in mlx_name:
        weight = _tiled(mlx_name, weight, text)
    _put(writer, tensor, weight, quantize)


def _put(writer: gguf.GGUFWriter, tensor: str, weight: Array, quantize: bool) -> None:
    weight = np.ascontiguousarray(weight)
    is_matrix = weight.ndim > 1 and weight.shape[-1] % 32 == 0
    if quantize and is_matrix and not tensor.endswith(_FLOATS):
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor, gguf.quantize(weight, kind), raw_dtype=kind)
        return
    writer.add_tensor(tensor, weight)


def _as_mamba2(mlx_name: str, weight: Array) -> Array:
    """Vectors as columns, the norm by groups, and the decay without its logarithm."""
    if mlx_name.endswith(".A_log"):
        return -np.exp(weight)[:, None]
    if mlx_name.endswith(".D"):
        return weight[:, None]
    if mlx_name.endswith(".norm.weight"):
        return weight[None]
    return weight[..., 0] if weight.ndim == 3 else weight


def _tiled(mlx_name: str, weight: Array, text: dict[str, Any]) -> Array:
    """Heads of values one of each group after another, as the converter has them."""
    keys, heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
    width = text["linear_value_head_dim"]
    order = np.arange(heads).reshape(keys, heads // keys).T.reshape(-1)
    rows = (order[:, None] * width + np.arange(width)).reshape(-1)
    if "A_log" in mlx_name:
        return -np.exp(weight[order])
    if mlx_name.endswith(("dt_bias", "in_proj_a.weight", "in_proj_b.weight")):
        return weight[order]
    if mlx_name.endswith("in_proj_z.weight"):
        return weight[rows]
    if mlx_name.endswith("out_proj.weight"):
        return weight[:, rows]
    if mlx_name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        first = len(weight) - len(rows)
        weight = np.concatenate([weight[:first], weight[first:][rows]])
        return weight[..., 0] if weight.ndim == 3 else weight
    return weight


@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_model_is_the_same_model(tmp_path: Path, name: str) -> None:
    path, module = write(tmp_path, name)
    loaded = load_model(locate(str(path)))
    assert loaded.model_type == FAMILIES[name][0]
    np.testing.assert_allclose(
        np.array(loaded.module(TOKENS)), np.array(module(TOKENS)), rtol=1e-3, atol=1e-3
    )


def test_packed_experts_are_parted(tmp_path: Path) -> None:
    path, module = write(tmp_path, "gemma4-experts", quantize=True)
    packed = np.array(packed_module(path)(TOKENS))
    expected = np.array(module(TOKENS))
    spread = float(np.abs(expected).max())
    assert float(np.abs(packed - expected).max()) < 0.1 * spread


def test_packed_heads_are_put_in_order(tmp_path: Path) -> None:
    path, module = write(tmp_path, "qwen35", quantize=True)
    other = packed_module(path)
    found, expected = np.array(other(TOKENS)), np.array(module(TOKENS))
    spread = float(np.abs(expected).max())
    assert float(np.abs(found - expected).max()) < 0.05 * spread


def test_packed_halves_of_a_shared_expert_are_joined(tmp_path: Path) -> None:
    path, module = write(tmp_path, "granitehybrid-experts", quantize=True)
    packed = packed_module(path).layers[1].shared_mlp.input_linear
    whole = module.layers[1].shared_mlp.input_linear
    rows = mx.array([[1.0, -1.0] * (whole.weight.shape[-1] // 2)])
    np.testing.assert_allclose(
        np.array(packed(rows)), np.array(whole(rows)), atol=0.1, rtol=0.05
    )


def test_packed_latents_are_those_of_the_model(tmp_path: Path) -> None:
    path, module = write(tmp_path, "deepseek2", quantize=True)
    packed, expected = packed_module(path).layers[1], module.layers[1]
    latents = mx.random.normal((1, 4, 5, 32))
    for name in ("embed_q", "unembed_out"):
        found = np.array(getattr(packed.self_attn, name)(latents))
        whole = np.array(getattr(expected.self_attn, name)(latents))
        spread = float(np.abs(whole).max())
        assert float(np.abs(found - whole).max()) < 0.03 * spread


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("expert_gating_func", 1, "expert_gating_func' is 1, and only sigmoid"),
        ("rope.scaling.type", "yarn", "scaled positions"),
        ("rope.dimension_count", 18, "latents of 48, of which 32"),
    ],
)
def test_other_forms_of_latents_are_refused_by_name(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    keys = {**KEYS["deepseek2"], "rope.scaling.factor": 4.0, key: value}
    if key != "rope.scaling.type":
        del keys["rope.scaling.factor"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KEYS, "deepseek2", keys)
        path, _ = write(tmp_path, "deepseek2")
    with pytest.raises(RvllmError, match=words):
        gguf_config(GGUFFile(path))


def test_groups_of_a_recurrent_norm_are_refused(tmp_path: Path) -> None:
    keys = {**KEYS["granitehybrid"], "ssm.group_count": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KEYS, "granitehybrid", keys)
        path, _ = write(tmp_path, "granitehybrid")
    with pytest.raises(UnsupportedModelError, match="group_count' is 2"):
        gguf_config(GGUFFile(path))


def test_an_unknown_choice_of_experts_is_refused(tmp_path: Path) -> None:
    KEYS["glm4moe"]["expert_gating_func"] = 1
    try:
        path, _ = write(tmp_path, "glm4moe")
    finally:
        KEYS["glm4moe"]["expert_gating_func"] = 2
    with pytest.raises(UnsupportedModelError, match="expert_gating_func' is 1"):
        gguf_config(GGUFFile(path))
