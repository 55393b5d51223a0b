"""What a GGUF file means in mlx-lm's terms: its weights under mlx-lm's names.

The configuration is `gguf_config`'s. Knows the architectures' tensor names and the few changes that llama.cpp's
converter makes to weights; everything else about a family is mlx-lm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.blocks import FloatArray
from rvllm_local.models.gguf.mlx import repack
from rvllm_local.models.gguf.reader import GGUFFile

Rows = npt.NDArray[Any]  # anything whose first axis is a weight's output rows

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_GLM4 = {
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
_GPT_OSS = {
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_LLAMA4 = {
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_exps": "feed_forward.experts.gate_proj",
    "ffn_up_exps": "feed_forward.experts.up_proj",
    "ffn_down_exps": "feed_forward.experts.down_proj",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.switch_mlp.gate_proj",
    "ffn_up_exps": "block_sparse_moe.switch_mlp.up_proj",
    "ffn_down_exps": "block_sparse_moe.switch_mlp.down_proj",
}
# Parts of a Llama's layer that may have biases.
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_BIASED = _MLP | {"attn_q", "attn_k", "attn_v", "attn_output"}
# A parameter that is no layer's weight.
_BARE = ".sinks"
# A matrix of one row, which the converter writes as a vector.
_ONE_ROW = "mlp.shared_expert_gate.weight"
# Tensors that shape the rotation; the configuration takes them in.
ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one of llama.cpp's architectures maps to mlx-lm's `model_type`.

    `permuted`: rows of queries and keys are in llama.cpp's order for its interleaved rotation. `norm_shift`: what the
    converter added to the weights of norms. `always_tied`: the family has no output matrix of its own.
    `prefix` stands before every name in mlx-lm's definition. With `fills_biases` each
    layer may have biases or not, and the definition has all of them or none.
    """

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    permuted: bool = False
    norm_shift: float = 0.0
    always_tied: bool = False
    has_experts: bool = False
    prefix: str = ""
    fills_biases: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permuted=True, fills_biases=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", {**_LAYER, **_HEAD_NORMS}),
    "gemma": Architecture("gemma", norm_shift=1.0, always_tied=True),
    "gemma2": Architecture(
        "gemma2", {**_LAYER, **_FOUR_NORMS}, norm_shift=1.0, always_tied=True
    ),
    "gemma3": Architecture(
        "gemma3_text", {**_LAYER, **_FOUR_NORMS, **_HEAD_NORMS}, norm_shift=1.0
    ),
    "phi3": Architecture("phi3", {**_LAYER, **_FUSED}),
    "glm4": Architecture("glm4", {**_LAYER, **_GLM4}),
    "gpt-oss": Architecture("gpt_oss", {**_LAYER, **_GPT_OSS}, has_experts=True),
    "llama4": Architecture(
        "llama4", {**_LAYER, **_LLAMA4}, has_experts=True, prefix="language_model."
    ),
    "qwen2moe": Architecture(
        "qwen2_moe", {**_LAYER, **_EXPERTS, **_SHARED_EXPERT}, has_experts=True
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", {**_LAYER, **_HEAD_NORMS, **_EXPERTS}, has_experts=True
    ),
}


# llama.cpp calls it llama, too: its experts tell.
_MIXTRAL_ARCHITECTURE = Architecture(
    "mixtral", {**_LAYER, **_MIXTRAL}, permuted=True, has_experts=True
)


def architecture_of(file: GGUFFile) -> Architecture:
    """Raises `UnsupportedModelError` with the known names for any other architecture."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path}: GGUF architecture {name!r:.80} is not supported; known are {', '.join(ARCHITECTURES)}. "
            "Use the model's safetensors instead"
        )
    if name == "llama" and file.metadata.get("llama.expert_count"):
        return _MIXTRAL_ARCHITECTURE
    return ARCHITECTURES[name]


def check_shapes(file: GGUFFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the file's tensors against the shapes of a model's parameters, before any is read.

    Raises `ModelFileError`, or `UnsupportedModelError` for a tensor that the architecture does not have.
    """
    architecture = architecture_of(file)
    stored_tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in _weights(file):
        mlx_name = _mlx_name(file, architecture, name)
        if mlx_name in stored_tensors or mlx_name not in expected:
            raise ModelFileError(
                f"{file.path}: tensor {name!r:.80} has no place of its own in the model"
            )
        shape = file.tensors[name].shape
        if mlx_name.endswith(_ONE_ROW) and len(shape) == 1:
            shape = (1, *shape)
        stored_tensors[mlx_name] = (name, shape)
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


def gguf_weights(
    file: GGUFFile, config: dict[str, Any]
) -> Iterator[tuple[str, FloatArray]]:
    """Each weight under mlx-lm's name, one at a time, as float32."""
    architecture = architecture_of(file)
    for name in _weights(file):
        yield (
            _mlx_name(file, architecture, name),
            _values(file, architecture, name, config),
        )
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
            if len(info.shape) >= 2
            else None
        )
        if packed is None:
            yield mlx_name, _values(file, architecture, name, config).astype(floats)
            continue
        stem = mlx_name.removesuffix(".weight")
        for part in ("weight", "scales", "biases"):
            yield (
                f"{stem}.{part}",
                _ordered(file, architecture, name, getattr(packed, part), config),
            )
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


def _weights(file: GGUFFile) -> list[str]:
    return [name for name in file.tensors if name not in ROPE_TENSORS]


def _values(
    file: GGUFFile, architecture: Architecture, name: str, config: dict[str, Any]
) -> FloatArray:
    values = _ordered(file, architecture, name, file.read(name), config)
    if name.endswith("norm.weight"):
        return values - np.float32(architecture.norm_shift)
    if _mlx_name(file, architecture, name).endswith(_ONE_ROW):
        return values.reshape(1, -1)
    return values


def _mlx_name(file: GGUFFile, architecture: Architecture, name: str) -> str:
    in_layer = re.fullmatch(r"blk\.([0-9]{1,4})\.(\w+)\.(weight|bias)", name)
    if in_layer is not None:
        layer, part, kind = in_layer.groups()
        name_in_layer = architecture.layer.get(part)
        if name_in_layer is not None:
            layer_name = f"{architecture.prefix}model.layers.{int(layer)}"
            mlx_name = f"{layer_name}.{name_in_layer}"
            if name_in_layer.endswith(_BARE):
                return mlx_name
            return f"{mlx_name}.{kind}"
    at_top = re.fullmatch(r"(\w+)\.(weight|bias)", name)
    if at_top is not None and at_top[1] in _TOP:
        return f"{architecture.prefix}{_TOP[at_top[1]]}.{at_top[2]}"
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
