"""Repositories of 8- and 4-bit floats and of compressed-tensors give the logits of what their codes stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.models.describe import describe
from rvllm_local.models.float8 import as_floats
from rvllm_local.models.loader import load_model, open_native
from rvllm_local.models.locate import locate
from tests.support.eight_bits import Array, Floats, Small, Whole, float8_values
from tests.support.tiny import ARCHITECTURES, save_tokenizer, tiny_model
from tests.support.zoo import zoo_model

MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
TOKENS = mx.array([[5, 6, 7, 9, 11, 300]])
Pack = Callable[[Array, int], tuple[Array, dict[str, Array]]]


def saved(folder: Path, config: Any, pack: Pack, arch: str = "llama") -> nn.Module:
    """Write a repository as `pack` stores its matrices; returns what they stand for.

    Experts are stored one by one, as they are published.
    """
    make = tiny_model if arch in ARCHITECTURES else zoo_model
    model, model_config = make(arch)
    dense: dict[str, Array] = {}
    stored: dict[str, Array] = {}
    for seed, (name, value) in enumerate(tree_flatten(model.parameters())):
        dense[name] = np.array(value)
        if not name.endswith("proj.weight"):
            stored[name] = dense[name]
            continue
        stem = name.removesuffix(".weight")
        if value.ndim == 2:
            dense[name], parts = pack(dense[name], seed)
            stored.update({f"{stem}.{part}": each for part, each in parts.items()})
            continue
        experts = []
        for number, matrix in enumerate(dense[name]):
            weight, parts = pack(matrix, 100 * seed + number)
            experts.append(weight)
            its_stem = stem.replace("switch_mlp", f"experts.{number}")
            if arch == "mixtral":
                for theirs, ours in MIXTRAL.items():
                    its_stem = its_stem.replace(theirs, ours)
            stored.update({f"{its_stem}.{part}": each for part, each in parts.items()})
        dense[name] = np.stack(experts)
    settings = {**model_config, "quantization_config": config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    write(folder, stored)
    save_tokenizer(folder)
    wide = [(name, mx.array(value.astype(np.float32))) for name, value in dense.items()]
    model.update(tree_unflatten(wide))
    return model


def write(folder: Path, stored: dict[str, Array]) -> None:
    """A safetensors file in which bytes named `weight` are 8-bit floats."""
    header: dict[str, Any] = {}
    parts = []
    offset = 0
    names = {"uint8": "F8_E4M3", "int8": "I8", "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32"}  # fmt: skip
    for name, value in stored.items():
        raw = np.ascontiguousarray(value).tobytes()
        place = [offset, offset + len(raw)]
        kind = names[value.dtype.name]
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": place}
        parts.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def in_blocks(block: tuple[int, int], suffix: str = "weight_scale_inv") -> Pack:
    def pack(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        made = Floats.random(matrix.shape, block, seed)
        return made.weight, {"weight": made.codes, suffix: made.scales}

    return pack


def with_one_scale(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    made = Floats.random(matrix.shape, (1 << 20, 1 << 20), seed)
    parts = {"weight": made.codes, "weight_scale": made.scales.reshape(())}
    return made.weight, {**parts, "input_scale": np.ones((), np.float32)}


def with_powers_of_two(block: tuple[int, int], suffix: str) -> Pack:
    """Scales that are bytes, each an exponent."""

    def pack(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        made = Floats.random(matrix.shape, block, seed)
        exponents = np.round(np.log2(made.scales))
        exact = Floats(made.codes, 2.0**exponents, made.block)
        scales = (exponents + 127).astype(np.uint8)
        return exact.weight, {"weight": made.codes, suffix: scales}

    return pack


def nvfp4_divided(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    """As compressed-tensors writes it; the inverse is a power of two's neighbour."""
    made = Small.random(matrix.shape, 16, seed)
    factor = np.array([1 / made.factor], np.float32)
    exact = Small(made.codes, made.scales, 1 / float(factor[0]))
    parts = {"weight_packed": made.packed, "weight_scale": made.scales}
    more = {"weight_global_scale": factor, "input_global_scale": factor}
    return exact.weight, {**parts, **more}


def nvfp4_multiplied(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    """As ModelOpt writes it."""
    if matrix.shape[1] % 16:
        return matrix, {"weight": matrix}
    made = Small.random(matrix.shape, 16, seed)
    factor = np.array(made.factor, np.float32)
    parts = {"weight": made.packed, "weight_scale": made.scales}
    more = {"weight_scale_2": factor, "input_scale": factor}
    return made.weight, {**parts, **more}


def of_two_kinds(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    if seed % 2:
        return nvfp4_multiplied(matrix, seed)
    return with_one_scale(matrix, seed)


def mxfp4(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    if matrix.shape[1] % 32:
        return matrix, {"weight": matrix}
    made = Small.random(matrix.shape, 32, seed)
    return made.weight, {"weight_packed": made.packed, "weight_scale": made.scales}


def mxfp8(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    if matrix.shape[1] % 32:
        return matrix, {"weight": matrix}
    return with_powers_of_two((1, 32), "weight_scale")(matrix, seed)


def of_blocks_of_blocks(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    """Scales `[row blocks, 1, column blocks, 1]`."""
    weight, parts = in_blocks((32, 48), "weight_scale")(matrix, seed)
    scales = parts["weight_scale"][:, None, :, None]
    return weight, {**parts, "weight_scale": scales}


def in_words(**how: Any) -> Pack:
    def pack(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        rows, columns = matrix.shape
        if columns % 32:
            return matrix, {"weight": matrix}
        sizes = {"group": columns, **how}
        made = Whole.random(rows, columns, seed=seed, **sizes)
        return made.weight, made.packed(symmetric=how.get("symmetric", True))

    return pack


def in_bytes(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
    rows, columns = matrix.shape
    made = Whole.random(rows, columns, bits=8, group=columns, seed=seed)
    codes = made.codes.astype(np.int8)
    return made.weight, {"weight": codes, "weight_scale": made.scales}


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def rotated(*locations: str) -> dict[str, Any]:
    """Settings of a writer that rotated weights, or has activations rotated."""
    apply = [{"targets": ["Linear"], "location": at} for at in locations]
    scheme = {"type": "hadamard", "apply": apply}
    settings = compressed("pack-quantized", num_bits=4, group_size=32)
    return {**settings, "transform_config": {"config_groups": {"R1": scheme}}}


def mixed(*algorithms: str) -> dict[str, Any]:
    """ModelOpt's settings of layers of several kinds."""
    layers = {name: {"quant_algo": name} for name in algorithms}
    settings = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    return {**settings, "quantized_layers": layers}


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 48]}  # fmt: skip
FLOATS: dict[str, tuple[dict[str, Any], Pack]] = {
    "blocks": (BLOCKS, in_blocks((32, 48))),
    "blocks of which the last are cut": (
        {**BLOCKS, "weight_block_size": [128, 40]},
        in_blocks((128, 40)),
    ),
    "rows": (
        {"quant_method": "fbgemm_fp8"},
        in_blocks((1, 1 << 20), "weight_scale"),
    ),
    "one scale": ({"quant_method": "fp8"}, with_one_scale),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, with_one_scale),
    "compressed-tensors, rows": (
        compressed("float-quantized", type="float", num_bits=8, strategy="channel"),
        in_blocks((1, 1 << 20), "weight_scale"),
    ),
    "compressed-tensors, blocks of which the last are cut": (
        compressed(
            "float-quantized",
            type="float",
            num_bits=8,
            strategy="block",
            block_structure=[64, 40],
        ),
        in_blocks((64, 40), "weight_scale"),
    ),
    "compressed-tensors, blocks in older words": (
        compressed(
            "float-quantized", type="float", num_bits=8, block_structure="64x40"
        ),
        in_blocks((64, 40), "weight_scale"),
    ),
    "scales that are powers of two": (
        {**BLOCKS, "scale_fmt": "ue8m0"},
        with_powers_of_two((32, 48), "weight_scale_inv"),
    ),
    "modelopt, blocks": (
        {**BLOCKS, "quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        of_blocks_of_blocks,
    ),
    "compressed-tensors, 4 bits": (
        compressed("nvfp4-pack-quantized", type="float", num_bits=4, group_size=16),
        nvfp4_divided,
    ),
    "modelopt, 4 bits": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        nvfp4_multiplied,
    ),
    "modelopt, layers of 8 and of 4 bits": (mixed("FP8", "NVFP4"), of_two_kinds),
    "compressed-tensors, one scale": (
        compressed("naive-quantized", type="float", num_bits=8, strategy="tensor"),
        with_one_scale,
    ),
}
WHOLE: dict[str, tuple[dict[str, Any], Pack]] = {
    "groups of 4 bits": (
        compressed("pack-quantized", num_bits=4, group_size=32, strategy="group"),
        in_words(group=32),
    ),
    "with zeros": (
        compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False),
        in_words(group=32, symmetric=False),
    ),
    "groups by activation": (
        compressed("pack-quantized", num_bits=4, group_size=32, actorder="group"),
        in_words(group=32, by_activation=True),
    ),
    "groups by activation, with zeros": (
        compressed("pack-quantized", num_bits=8, group_size=32, actorder="group"),
        in_words(group=32, bits=8, symmetric=False, by_activation=True),
    ),
    "rotated before they were packed": (
        rotated("weight_output", "weight_input"),
        in_words(group=32),
    ),
    "rows of 4 bits": (
        compressed("pack-quantized", num_bits=4, group_size=None, strategy="channel"),
        in_words(),
    ),
    "rows of 8 bits": (
        compressed("pack-quantized", num_bits=8, strategy="channel"),
        in_words(bits=8),
    ),
    "floats as MLX has them": (
        compressed("mxfp4-pack-quantized", type="float", num_bits=4, group_size=32),
        mxfp4,
    ),
    "modelopt, groups of 32": (
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
        mxfp8,
    ),
    "compressed-tensors, groups of 32": (
        compressed("mxfp8-quantized", type="float", num_bits=8, group_size=32),
        mxfp8,
    ),
    "bytes": (compressed("int-quantized", num_bits=8, strategy="channel"), in_bytes),
}


def test_a_byte_stands_for_what_mlx_makes_of_it() -> None:
    made = mx.from_fp8(mx.arange(256).astype(mx.uint8), dtype=mx.float32)
    np.testing.assert_array_equal(np.array(made), float8_values())


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *((name, "llama") for name in FLOATS),
        *(
            (name, arch)
            for name in ("blocks", "one scale", "modelopt, 4 bits")
            for arch in ("qwen3", "qwen3_moe", "deepseek_v3")
        ),
    ],
)
def test_floats_have_the_logits_of_their_codes(
    name: str, arch: str, tmp_path: Path
) -> None:
    config, pack = FLOATS[name]
    expected = np.array(saved(tmp_path, config, pack, arch)(TOKENS))
    loaded = load_model(locate(str(tmp_path)), packs=True)
    logits = np.array(loaded.module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *((name, "llama") for name in WHOLE),
        *(
            (name, arch)
            for name in ("with zeros", "floats as MLX has them", "groups by activation")
            for arch in ("qwen3_moe", "deepseek_v3", "mixtral")
        ),
    ],
)
def test_whole_numbers_have_the_logits_of_their_codes(
    name: str, arch: str, tmp_path: Path
) -> None:
    config, pack = WHOLE[name]
    expected = np.array(saved(tmp_path, config, pack, arch)(TOKENS))
    loaded = load_model(locate(str(tmp_path)))
    logits = np.array(loaded.module(TOKENS))
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_inputs_that_are_scaled_first_are_refused_by_name(tmp_path: Path) -> None:
    def pack(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        weight, parts = nvfp4_multiplied(matrix, seed)
        before = np.ones(matrix.shape[1], np.float32)
        return weight, {**parts, "pre_quant_scale": before}

    saved(tmp_path, FLOATS["modelopt, 4 bits"][0], pack)
    with pytest.raises(UnsupportedModelError, match=r"proj\.pre_quant_scale scales"):
        load_model(locate(str(tmp_path)))


def test_blocks_of_which_nobody_says_the_size_are_the_usual_ones() -> None:
    made = Floats.random((192, 160), (128, 128), seed=3)
    stored = {"weight": mx.array(made.codes), "weight_scale_inv": mx.array(made.scales)}
    floats = as_floats(stored, mx.float32)["weight"]
    np.testing.assert_allclose(np.array(floats), made.weight, rtol=1e-6)


def test_a_cpu_keeps_whole_numbers(tmp_path: Path) -> None:
    saved(tmp_path, *WHOLE["with zeros"])
    assert load_model(locate(str(tmp_path)), packs=True).packs


def test_a_gpu_has_bfloat16_and_words_as_they_are(tmp_path: Path) -> None:
    saved(tmp_path / "floats", *FLOATS["blocks"])
    native = open_native(locate(str(tmp_path / "floats")))
    assert native.module.layers[0].mlp.up_proj.weight.dtype == mx.bfloat16
    saved(tmp_path / "words", *WHOLE["groups of 4 bits"])
    layer = open_native(locate(str(tmp_path / "words"))).module.layers[0].mlp.up_proj
    assert (layer.bits, layer.group_size, layer.mode) == (4, 32, "affine")
    assert layer.scales.dtype == mx.float16


def test_plans_know_what_becomes_wider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, *FLOATS["blocks"])
    files = locate(str(tmp_path))
    loaded = load_model(files, packs=True)
    assert describe(files).weights_bytes >= loaded.weights_bytes
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    native = open_native(files).module.parameters()
    needed = sum(2 * value.size for _, value in tree_flatten(native))
    assert describe(files).weights_bytes >= needed


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**BLOCKS, "fmt": "e5m2"}, "kind 'e5m2'"),
        (compressed("pack-quantized", num_bits=3), "3 bits in the layout 'pack-q"),
        (compressed("marlin-24", num_bits=4), "layout 'marlin-24'.*take a conv"),
        (compressed("nvfp4-pack-quantized", type="float", num_bits=8), "layout 'nvfp4"),
        (rotated("weight_input", "input"), "rotates activations .'R1' .* at 'input'"),
        (rotated("q_attn"), "rotates activations .*'q_attn'"),
        ({**rotated(), "transform_config": {"R1": 1}}, "transform_config cannot be"),
        ({"quant_method": "compressed-tensors"}, "names no config_groups"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "algorithm 'W4A8_AWQ"),
        (mixed("FP8", "W4A16_AWQ"), "algorithm 'W4A16_AWQ"),
    ],
)
def test_other_forms_are_refused_by_name(
    config: Any, words: str, tmp_path: Path
) -> None:
    saved(tmp_path, config, FLOATS["blocks"][1])
    for read in (describe, load_model):
        with pytest.raises(RvllmError, match=words) as caught:
            read(locate(str(tmp_path)))
        assert isinstance(caught.value, ModelFileError | UnsupportedModelError)


LAYER = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("case", "part", "value"),
    [
        ("blocks", "weight_scale_inv", None),
        ("blocks", "weight_scale_inv", np.ones((7, 2), np.float32)),
        ("blocks", "weight_scale_inv", np.ones((1, 2, 2), np.float32)),
        ("modelopt, 4 bits", "weight_scale", None),
        ("modelopt, 4 bits", "weight_scale", np.ones((96, 3), np.uint8)),
        ("modelopt, 4 bits", "weight_scale_2", np.ones(96, np.float32)),
        ("compressed-tensors, 4 bits", "weight_global_scale", None),
        ("floats as MLX has them", "weight_scale", None),
        ("groups of 4 bits", "weight_scale", None),
        ("groups of 4 bits", "weight_scale", np.ones((96, 3), np.float16)),
        ("groups of 4 bits", "weight_shape", np.array([96, 63])),
        ("groups of 4 bits", "weight_g_idx", np.arange(60, dtype=np.int32) % 2),
        ("groups of 4 bits", "weight_g_idx", np.arange(64, dtype=np.int32) % 3),
    ],
)
def test_parts_that_do_not_go_together_name_the_layer(
    case: str, part: str, value: Any, tmp_path: Path
) -> None:
    def changed(matrix: Array, seed: int) -> tuple[Array, dict[str, Array]]:
        weight, parts = pack(matrix, seed)
        if value is None:
            del parts[part]
        elif matrix.shape == (96, 64) or part == "weight_g_idx":
            parts[part] = value
        return weight, parts

    config, pack = (FLOATS | WHOLE)[case]
    saved(tmp_path, config, changed)
    with pytest.raises(RvllmError, match=r"_proj") as caught:
        load_model(locate(str(tmp_path)))
    assert isinstance(caught.value, ModelFileError | UnsupportedModelError)
