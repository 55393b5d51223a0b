"""What a GGUF file means in mlx-lm's terms: its weights under mlx-lm's names.

The configuration is `gguf_config`'s. Knows the architectures' tensor names and the few changes that llama.cpp's
converter makes to weights; everything else about a family is mlx-lm's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.architectures import (
    Architecture,
    architecture_of,
)
from rvllm_local.models.gguf.blocks import FloatArray
from rvllm_local.models.gguf.delta_net import DeltaNet, logarithm_of_decay
from rvllm_local.models.gguf.joined import joined_shapes
from rvllm_local.models.gguf.keys import Keys
from rvllm_local.models.gguf.mlx import repack
from rvllm_local.models.gguf.reader import GGUFFile

_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")
_IN_LAYER = re.compile(_BLOCK.pattern + r"([\w.]+?)(?:\.(weight|bias|scale))?")
Rows = npt.NDArray[Any]  # anything whose first axis is a weight's output rows

# Parts of a Llama's layer that may have biases.
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_BIASED = _MLP | {"attn_q", "attn_k", "attn_v", "attn_output"}
# A parameter that is no layer's weight.
_BARE = (
    ".sinks",
    ".e_score_correction_bias",
    ".A_log",
    ".D",
    ".dt_bias",
    ".expert_bias",
    ".layer_scalar",
    ".router.scale",
    ".per_expert_scale",
)
# Two matrices of each expert in one, which definitions have apart.
_TWO_IN_ONE = "gate_up_exps"
_PARTS = ("gate_exps", "up_exps")
# What a layer that takes the keys of an earlier one has no use for.
_OWN_KEYS = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
_DECAY = ".A_log"
# A convolution's kernels, which the converter writes without their axis of one.
_KERNELS = (".conv1d.weight", ".conv.conv.weight")
# Vectors, which the converter writes as matrices.
_VECTORS = (".A_log", ".D", ".mamba.norm.weight")
# A matrix of one row, which the converter writes as a vector.
_ONE_ROW = "mlp.shared_expert_gate.weight"
# Tensors that shape the rotation; the configuration takes them in.
ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)


def check_shapes(file: GGUFFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the file's tensors against the shapes of a model's parameters, before any is read.

    Raises `ModelFileError`, or `UnsupportedModelError` for a tensor that the architecture does not have.
    """
    architecture = architecture_of(file)
    stored_tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, stored_shape in _stored_shapes(file):
        mlx_name = _mlx_name(file, architecture, name)
        if mlx_name in stored_tensors:
            raise _without_place(file, name)
        shape = stored_shape
        if mlx_name.endswith(_ONE_ROW) and len(shape) == 1:
            shape = (1, *shape)
        if mlx_name.endswith(_KERNELS):
            shape = (*shape, 1)
        if mlx_name.endswith(_VECTORS):
            shape = (math.prod(shape),)
        stored_tensors[mlx_name] = (name, shape)
    stored_tensors = joined_shapes(architecture, stored_tensors)
    for mlx_name, (name, _) in stored_tensors.items():
        if mlx_name not in expected:
            raise _without_place(file, name)
    # An output matrix that is not there is the embedding.
    missing = expected.keys() - stored_tensors.keys() - {"lm_head.weight"}
    if architecture.fills_biases:
        missing = {name for name in missing if not name.endswith(".bias")}
    if missing:
        raise ModelFileError(
            f"{file.path}: the weights do not fit the configuration: {min(missing)} is "
            "missing"
        )
    for name, shape in expected.items():
        tensor, stored = stored_tensors.get(name, ("", shape))
        if tuple(stored) != tuple(shape):
            raise ModelFileError(
                f"{file.path}: the weights do not fit the configuration: tensor {tensor!r} has shape {list(stored)}, and "
                f"the model takes {list(shape)}"
            )


def _without_place(file: GGUFFile, tensor: str) -> ModelFileError:
    return ModelFileError(
        f"{file.path}: tensor {tensor!r:.80} has no place of its own in the model"
    )


def gguf_weights(
    file: GGUFFile, config: dict[str, Any]
) -> Iterator[tuple[str, FloatArray]]:
    """Each weight under mlx-lm's name, one at a time, as float32."""
    architecture = architecture_of(file)
    for name in _weights(file):
        values = _values(file, architecture, name, config)
        for part, part_values in _parts(name, values):
            yield _mlx_name(file, architecture, part), part_values
    yield from _absent_biases(file, architecture, config)


def gguf_packed_weights(
    file: GGUFFile, config: dict[str, Any], floats: npt.DTypeLike = np.float16
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Like `gguf_weights`, but quantized matrices are as MLX packs them, and all else is `floats`."""
    architecture = architecture_of(file)
    for name in _weights(file):
        info = file.tensors[name]
        mlx_name = _mlx_name(file, architecture, name)
        packed = (
            repack(file.read_blocks(name), info.format, info.shape)
            if len(info.shape) >= 2 and not mlx_name.endswith(_KERNELS)
            else None
        )
        if packed is None:
            values = _values(file, architecture, name, config).astype(floats)
            for part, part_values in _parts(name, values):
                yield _mlx_name(file, architecture, part), part_values
            continue
        for kind in ("weight", "scales", "biases"):
            rows = _ordered(file, architecture, name, getattr(packed, kind), config)
            for part, part_rows in _parts(name, rows):
                stem = _mlx_name(file, architecture, part).removesuffix(".weight")
                yield f"{stem}.{kind}", part_rows
    for mlx_name, zeros in _absent_biases(file, architecture, config):
        yield mlx_name, zeros.astype(floats)


def _absent_biases(
    file: GGUFFile, architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[tuple[str, FloatArray]]:
    """Biases that the definition has and the file has not: they are zero."""
    if not architecture.fills_biases:
        return
    for name in _weights(file):
        if not name.endswith(".weight"):
            continue
        part = name.split(".")[-2]
        is_biased = config["mlp_bias"] if part in _MLP else config["attention_bias"]
        bias = f"{name.removesuffix('.weight')}.bias"
        if part not in _BIASED or not is_biased or bias in file.tensors:
            continue
        rows = file.tensors[name].shape[0]
        yield _mlx_name(file, architecture, bias), np.zeros(rows, dtype=np.float32)


def num_layers(file: GGUFFile) -> int:
    """The layers of the model itself, without those behind it that predict more tokens."""
    keys = Keys(file)
    blocks = keys.integer("block_count")
    if "nextn_predict_layers" not in architecture_of(file).scales:
        return blocks
    return blocks - keys.whole("nextn_predict_layers", 0)


def _weights(file: GGUFFile) -> list[str]:
    keys = Keys(file)
    blocks = keys.integer("block_count")
    behind = range(num_layers(file), blocks)
    shared = range(0)
    if architecture_of(file).shares_keys:
        first = blocks - keys.whole("attention.shared_kv_layers", 0)
        shared = range(first, blocks)
    names = []
    for name in file.tensors:
        in_layer = _BLOCK.match(name)
        layer = -1 if in_layer is None else int(in_layer[1])
        is_unused = layer in shared and name.endswith(_OWN_KEYS)
        if name not in ROPE_TENSORS and layer not in behind and not is_unused:
            names.append(name)
    return names


def _parts(name: str, values: Rows) -> Iterator[tuple[str, Rows]]:
    """A tensor's parts under names of their own, if it holds two matrices in one."""
    if _TWO_IN_ONE not in name:
        yield name, values
        return
    halves = np.split(values, 2, axis=-2)
    for part, half in zip(_PARTS, halves, strict=True):
        yield name.replace(_TWO_IN_ONE, part), np.ascontiguousarray(half)


def _stored_shapes(file: GGUFFile) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, with the parts of those that hold two."""
    for name in _weights(file):
        shape = file.tensors[name].shape
        if _TWO_IN_ONE not in name:
            yield name, shape
            continue
        half = (*shape[:-2], shape[-2] // 2, shape[-1])
        for part in _PARTS:
            yield name.replace(_TWO_IN_ONE, part), half


def _values(
    file: GGUFFile, architecture: Architecture, name: str, config: dict[str, Any]
) -> FloatArray:
    values = _ordered(file, architecture, name, file.read(name), config)
    mlx_name = _mlx_name(file, architecture, name)
    if mlx_name.endswith(_VECTORS):
        values = values.reshape(-1)
    if name.endswith("norm.weight"):
        return values - np.float32(architecture.norm_shift)
    if mlx_name.endswith(_ONE_ROW):
        return values.reshape(1, -1)
    if mlx_name.endswith(_KERNELS):
        return values[..., None]
    if mlx_name.endswith(_DECAY):
        return logarithm_of_decay(values)
    return values


def _mlx_name(file: GGUFFile, architecture: Architecture, name: str) -> str:
    in_layer = _IN_LAYER.fullmatch(name)
    if in_layer is not None:
        layer, part, kind = in_layer.groups()
        if kind == "scale":
            part = f"{part}.scale"
        name_in_layer = architecture.layer.get(part)
        if name_in_layer is not None:
            layer_name = f"{architecture.prefix}model.layers.{int(layer)}"
            mlx_name = f"{layer_name}.{name_in_layer}"
            if mlx_name.endswith(_BARE):
                return mlx_name
            return f"{mlx_name}.{kind}"
    at_top = re.fullmatch(r"(\w+)\.(weight|bias)", name)
    if at_top is not None and at_top[1] in architecture.top:
        return f"{architecture.prefix}{architecture.top[at_top[1]]}.{at_top[2]}"
    raise UnsupportedModelError(
        f"{file.path}: tensor {name!r:.80} has no place in a {architecture.model_type} model"
    )


def _ordered(
    file: GGUFFile,
    architecture: Architecture,
    name: str,
    weight: Rows,
    config: dict[str, Any],
) -> Rows:
    """Rows in the order that mlx-lm wants."""
    if architecture.permuted and re.fullmatch(r"blk\.\d+\.attn_q\.(weight|bias)", name):
        return _unpermute(file, name, weight, config["num_attention_heads"])
    if architecture.permuted and re.fullmatch(r"blk\.\d+\.attn_k\.(weight|bias)", name):
        return _unpermute(file, name, weight, config["num_key_value_heads"])
    if "linear_num_value_heads" in config.get("text_config", ()):
        text = config["text_config"]
        value_heads = text["linear_num_value_heads"]
        net = DeltaNet(
            text["linear_num_key_heads"],
            value_heads,
            value_heads * text["linear_value_head_dim"],
        )
        return net.ordered(name.partition(".")[2].partition(".")[2], weight)
    return weight


def _unpermute(file: GGUFFile, name: str, weight: Rows, heads: int) -> Rows:
    """Undo the row order that llama.cpp's converter gives queries and keys for its interleaved RoPE."""
    rows = weight.shape[0]
    if rows % (2 * heads):
        raise ModelFileError(
            f"{file.path}: tensor {name!r} has {rows} rows, which {heads} heads cannot share"
        )
    pairs = weight.reshape(
        heads, rows // heads // 2, 2, -1
    )  # [heads, head_dim / 2, 2, columns]
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
