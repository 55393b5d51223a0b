"""Every architecture and encoding of GGUF: the same model as its safetensors, the same values as the reference reader.

The `gguf` package names the tensors, writes the files and decodes the blocks: none of the product's tables is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.blocks import FORMATS
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.mlx import repack
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.windows import layer_windows
from rvllm_local.text.pre_tokenizers import PRE_TOKENIZERS
from tests.support.gguf import permute
from tests.support.packed_gguf import packed_module
from tests.support.tiny import tiny_config, tiny_model
from tests.support.zoo import zoo_model

TINY = {
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "glm4": "glm4",
}
ZOO = ("qwen2moe", "qwen3moe", "glm4")
NAMES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", *ZOO)
# What gguf's table of names does not know by mlx-lm's.
EXPERTS = {
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
}
TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38]])
# Second rounding of the K-quants with groups of 16, and of products of two scales, as a share of the values.
REPACK_ERROR = {
    "Q2_K": 0.06,
    "Q3_K": 0.015,
    "Q6_K": 0.006,
    "Q4_K": 3e-4,
    "Q5_K": 3e-4,
    "IQ4_XS": 4e-4,
}


def write_model(folder: Path, name: str, **keys: Any) -> tuple[Path, Any]:
    """A GGUF file of the tiny model of an architecture, in the layout of llama.cpp's converter, and the model."""
    mx.random.seed(0)  # some definitions draw their biases
    make = zoo_model if name in ZOO else tiny_model
    module, config = make(TINY.get(name, name))
    arch = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(1e6 if name == "gemma3" else config["rope_theta"])
    writer.add_token_list([f"t{index}" for index in range(config["vocab_size"])])
    writer.add_eos_token_id(2)
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if "attn_logit_softcapping" in config:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if name == "glm4":
        writer.add_rope_dimension_count(config["head_dim"] // 2)
    for key, value in keys.items():
        writer.add_key_value(key, *value)
    for mlx_name, value in tree_flatten(module.parameters()):
        weight = np.array(value)
        if "gemma" in name and mlx_name.endswith("norm.weight"):
            weight = weight + 1
        if name == "llama" and "q_proj" in mlx_name:
            weight = permute(weight, config["num_attention_heads"])
        if name == "llama" and "k_proj" in mlx_name:
            weight = permute(weight, config["num_key_value_heads"])
        tensor = names.get_name(mlx_name, try_suffixes=(".weight", ".bias"))
        for part, gguf_name in EXPERTS.items():
            if part in mlx_name:
                tensor = f"blk.{mlx_name.split('.')[2]}.{gguf_name}.weight"
        if mlx_name.endswith("shared_expert_gate.weight"):
            weight = weight[0]  # the converter drops the axis of one
        assert tensor is not None, mlx_name
        writer.add_tensor(tensor, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, module


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma3"])
def test_an_architecture_is_the_same_model(tmp_path: Path, name: str) -> None:
    path, module = write_model(tmp_path, name)
    loaded = load_model(locate(str(path)))
    np.testing.assert_allclose(
        np.array(loaded.module(TOKENS)), np.array(module(TOKENS)), rtol=1e-4, atol=1e-4
    )
    assert loaded.eos_token_ids == (2,)
    assert gguf_config(GGUFFile(path))["model_type"] == TINY.get(name, name)


def test_gemma3_keeps_its_pattern_and_rotations(tmp_path: Path) -> None:
    path, module = write_model(tmp_path, "gemma3")
    loaded = load_model(locate(str(path)))
    for found, expected in zip(
        tree_flatten(loaded.module.parameters()),
        tree_flatten(module.parameters()),
        strict=True,
    ):
        assert found[0] == expected[0]
        np.testing.assert_allclose(
            np.array(found[1]), np.array(expected[1]), rtol=1e-6, atol=1e-6
        )
    args = loaded.module.args
    assert (args.sliding_window, args.sliding_window_pattern) == (32, 6)
    assert (args.rope_theta, args.rope_local_base_freq) == (1e6, 1e4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_packed_for_the_gpu_is_the_same_model(tmp_path: Path, name: str) -> None:
    path, module = write_model(tmp_path, name)
    other = packed_module(path)
    np.testing.assert_allclose(
        np.array(other(TOKENS)), np.array(module(TOKENS)), rtol=0.05, atol=0.05
    )


def blocks_of(
    kind: int, columns: int, rows: int, random: np.random.Generator
) -> np.ndarray:
    """Random blocks of an encoding with plausible scales: [blocks, bytes]."""
    form = FORMATS[kind]
    raw = random.integers(
        0, 256, size=(rows * columns // form.elements, form.size), dtype=np.uint8
    )
    if form.elements == 1:
        values = random.standard_normal(rows * columns).astype(np.float32)
        values = values.astype(np.float16) if form.size == 2 else values
        return values.view(np.uint8).reshape(raw.shape)
    halves = {
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q6_K": (208,),
        "Q4_1": (0, 2),
        "Q5_1": (0, 2),
    }
    halves |= {"Q4_K": (0, 2), "Q5_K": (0, 2)}
    if form.name == "MXFP4":
        raw[:, 0] = random.integers(112, 136, size=len(raw))  # an exponent
        return raw
    for place in halves.get(form.name, (0,)):
        raw[:, place : place + 2] = (
            random.standard_normal((len(raw), 1)).astype(np.float16).view(np.uint8)
        )
    return raw


@pytest.mark.parametrize("kind", FORMATS, ids=[form.name for form in FORMATS.values()])
def test_blocks_are_decoded_as_the_reference_does(kind: int) -> None:
    random = np.random.default_rng(kind)
    form = FORMATS[kind]
    raw = blocks_of(kind, 512, 6, random)
    values = form.decode(raw).reshape(6, 512)
    if form.name == "F32":
        expected = raw.view(np.float32).reshape(6, 512)
    elif form.name == "F16":
        expected = raw.view(np.float16).astype(np.float32).reshape(6, 512)
    else:
        expected = gguf.dequantize(raw.reshape(6, -1), gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(values, expected)
    assert (form.elements, form.size) == gguf.GGML_QUANT_SIZES[
        gguf.GGMLQuantizationType(kind)
    ]
    packed = repack(raw, form, values.shape)
    if packed is None:
        assert form.elements == 1
        return
    parts = [
        mx.array(packed.weight),
        *(mx.array(part.astype(np.float32)) for part in (packed.scales, packed.biases)),
    ]
    error = np.array(mx.dequantize(*parts, 32, packed.bits)) - values
    assert np.sqrt((error**2).mean() / (values**2).mean()) <= REPACK_ERROR.get(
        form.name, 0.0
    )


def test_scales_that_no_half_can_hold_are_not_packed() -> None:
    raw = blocks_of(12, 256, 1, np.random.default_rng(1))
    raw[:, :2] = np.array([[60000.0]], dtype=np.float16).view(np.uint8)
    assert repack(raw, FORMATS[12], (1, 256)) is None


def llama3_factors(factor: float, base: float = 10000.0, dim: int = 16) -> list[float]:
    """What llama.cpp's converter writes for Llama 3.1's scaling, by its published definition."""
    found = []
    for index in range(0, dim, 2):
        wavelength = 2 * math.pi * base ** (index / dim)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def add_tensor(path: Path, folder: Path, name: str, values: list[float]) -> Path:
    """The same file with one more tensor."""
    reader, target = gguf.GGUFReader(path), folder / f"more-{path.name}"
    writer = gguf.GGUFWriter(target, path.stem)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(
                field.name, field.contents(), field.types[0], *field.types[1:2]
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_found_again(tmp_path: Path, factor: float) -> None:
    path, _ = write_model(tmp_path, "llama")
    path = add_tensor(path, tmp_path, "rope_freqs.weight", llama3_factors(factor))
    loaded = load_model(locate(str(path)))
    assert loaded.config["rope_scaling"]["factor"] == factor
    config = tiny_config("llama") | {"rope_scaling": loaded.config["rope_scaling"]}
    plain = build_model(config)
    plain.load_weights(tree_flatten(loaded.module.parameters()))
    np.testing.assert_allclose(
        np.array(loaded.module(TOKENS)), np.array(plain(TOKENS)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], UnsupportedModelError),
        ([1.0] * 3, ModelFileError),
        ([0.0] * 8, ModelFileError),
        ([float("nan")] * 8, ModelFileError),
    ],
)
def test_other_rotation_factors_are_refused(
    tmp_path: Path, values: list[float], error: type[RvllmError]
) -> None:
    path, _ = write_model(tmp_path, "llama")
    with pytest.raises(error):
        load_model(locate(str(add_tensor(path, tmp_path, "rope_freqs.weight", values))))


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        ("qwen2", {"qwen2.expert_count": (8, gguf.GGUFValueType.UINT32)}, "experts"),
        (
            "qwen2",
            {"qwen2.rope.scaling.type": ("spiral", gguf.GGUFValueType.STRING)},
            "spiral",
        ),
        (
            "llama",
            {"llama.rope.dimension_count": (8, gguf.GGUFValueType.UINT32)},
            "RoPE over 8 of 16",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    tmp_path: Path, name: str, keys: Any, match: str
) -> None:
    path, _ = write_model(tmp_path, name, **keys)
    with pytest.raises(UnsupportedModelError, match=match):
        load_model(locate(str(path)))


def test_linear_scaling_and_partial_rotation_are_taken_over(tmp_path: Path) -> None:
    scaling = {
        "qwen2.rope.scaling.type": ("linear", gguf.GGUFValueType.STRING),
        "qwen2.rope.scaling.factor": (4.0, gguf.GGUFValueType.FLOAT32),
    }
    config = gguf_config(GGUFFile(write_model(tmp_path, "qwen2", **scaling)[0]))
    assert config["rope_scaling"] == {
        "type": "linear",
        "rope_type": "linear",
        "factor": 4.0,
    }
    for key in ("scaling.factor", "scale_linear"):  # a factor alone, and the old key
        alone = {f"qwen2.rope.{key}": (4.0, gguf.GGUFValueType.FLOAT32)}
        path, _ = write_model(tmp_path, "qwen2", **alone)
        assert gguf_config(GGUFFile(path))["rope_scaling"]["factor"] == 4.0
        assert load_model(locate(str(path))).module.layers[0].self_attn.rope.scale == (
            0.25
        )
    partial = {"phi3.rope.dimension_count": (12, gguf.GGUFValueType.UINT32)}
    config = gguf_config(GGUFFile(write_model(tmp_path, "phi3", **partial)[0]))
    assert config["partial_rotary_factor"] == 0.75


def test_yarn_is_taken_over(tmp_path: Path) -> None:
    scaling = {
        "qwen2.rope.scaling.type": ("yarn", gguf.GGUFValueType.STRING),
        "qwen2.rope.scaling.factor": (4.0, gguf.GGUFValueType.FLOAT32),
        "qwen2.rope.scaling.original_context_length": (64, gguf.GGUFValueType.UINT32),
    }
    path, _ = write_model(tmp_path, "qwen2", **scaling)
    rope = load_model(locate(str(path))).module.layers[0].self_attn.rope
    assert type(rope).__name__ == "YarnRoPE"


@pytest.mark.parametrize(
    ("name", "windows"), [("gemma2", [24, None] * 2), ("phi3", [24] * 4)]
)
def test_windows_are_taken_over(
    tmp_path: Path, name: str, windows: list[int | None]
) -> None:
    key = f"{name}.attention.sliding_window"
    path, _ = write_model(tmp_path, name, **{key: (24, gguf.GGUFValueType.UINT32)})
    config = gguf_config(GGUFFile(path))
    assert layer_windows(config) == windows[: config["num_hidden_layers"]]


def test_ends_are_all_that_the_file_names(tmp_path: Path) -> None:
    kind = gguf.GGUFValueType
    keys = {
        "tokenizer.ggml.eot_token_id": (7, kind.UINT32),
        "tokenizer.ggml.eom_token_id": (0xFFFFFFFF, kind.UINT32),
        "tokenizer.ggml.eos_token_ids": ([2, 9], kind.ARRAY, kind.UINT32),
    }
    path, _ = write_model(tmp_path, "qwen2", **keys)
    assert gguf_config(GGUFFile(path))["eos_token_id"] == [2, 7, 9]
    wrong = {"tokenizer.ggml.eot_token_id": (5000, kind.UINT32)}
    path, _ = write_model(tmp_path, "qwen3", **wrong)
    with pytest.raises(ModelFileError, match=r"eot_token_id.*tokenizer\.ggml\.tokens"):
        gguf_config(GGUFFile(path))


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    path, _ = write_model(tmp_path, "qwen2")
    for name in ("Model.GGUF", "model.gguf.bin", "sha256-0123abcd"):
        other = path.with_name(name)
        other.write_bytes(path.read_bytes())
        assert locate(str(other)).kind == "gguf"
        assert load_model(locate(str(other))).model_type == "qwen2"


# Texts, and how each model's published expression cuts them; one letter a token, so that the cuts show.
CUTS = {
    "llama-bpe": ["Hello", " world", "'s", " ", "123", "45", "!!\n\n", "  ", " x"],
    "qwen2": [
        "Hello",
        " world",
        "'s",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        "!!\n\n",
        "  ",
        " x",
    ],
    "tekken": [
        "Hello",
        " world",
        "'s",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        "!!\n\n",
        "  ",
        " x",
    ],
    "gpt-4o": ["Hello", " world's", " ", "123", "45", "!!\n\n", "  ", " x"],
    "smollm": [
        "Hello",
        " world",
        "'s",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        "!!",
        "\n\n  ",
        " x",
    ],
    "gpt-2": ["Hello", " world", "'s", " 12345", "!!", "\n\n  ", " x"],
}


@pytest.mark.parametrize("name", CUTS)
def test_texts_are_cut_as_the_models_do(name: str) -> None:
    cut = PRE_TOKENIZERS[name].backend()
    text = "Hello world's 12345!!\n\n   x"
    assert [
        text[start:stop] for _, (start, stop) in cut.pre_tokenize_str(text)
    ] == CUTS[name]
