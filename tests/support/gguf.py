"""Writes small GGUF files, right ones and wrong ones, for the tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_tokenizer

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
STRING, ARRAY, UINT32, INT32, FLOAT32, BOOL, UINT64 = 8, 9, 4, 5, 6, 7, 10
UINT16 = 2
_CODES = {UINT16: "H", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", UINT64: "Q"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the file holds it: row-major shape, encoding, bytes; `offset` overrides its place."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


def encode(values: np.ndarray, kind: int) -> bytes:
    """Bytes of float32 `values` in an encoding, block by block of 32 along the last axis."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == F32:
        return values.tobytes()
    if kind == F16:
        return values.astype(np.float16).tobytes()
    if kind == BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = values.reshape(-1, 32)
    if kind == Q8_0:
        scale = np.maximum(
            np.abs(blocks).max(axis=1, keepdims=True) / 127, 1e-8
        ).astype(np.float16)
        codes = np.clip(np.round(blocks / scale.astype(np.float32)), -127, 127).astype(
            np.int8
        )
        return np.concatenate(
            [scale.view(np.uint8), codes.view(np.uint8)], axis=1
        ).tobytes()
    if kind == Q4_0:
        scale = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 7, 1e-8).astype(
            np.float16
        )
        codes = np.clip(np.round(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(
            np.uint8
        )
        head = scale.view(np.uint8)
    else:
        low = blocks.min(axis=1, keepdims=True).astype(np.float16)
        scale = np.maximum((blocks.max(axis=1, keepdims=True) - low) / 15, 1e-8).astype(
            np.float16
        )
        codes = np.clip(
            np.round((blocks - low) / scale.astype(np.float32)), 0, 15
        ).astype(np.uint8)
        head = np.concatenate([scale.view(np.uint8), low.view(np.uint8)], axis=1)
    return np.concatenate(
        [head, codes[:, :16] | (codes[:, 16:] << 4)], axis=1
    ).tobytes()


def write_gguf(
    metadata: Mapping[str, tuple[int, Any]], tensors: Sequence[Tensor], version: int = 3
) -> bytes:
    """A whole file. Metadata values are `(type, value)`; arrays are `(ARRAY, (element type, values))`."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        head += _string(key) + struct.pack("<I", kind) + _value(kind, value)
    body = b""
    for tensor in tensors:
        place = len(body) if tensor.offset is None else tensor.offset
        head += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(
            f"<{len(tensor.shape)}Q", *reversed(tensor.shape)
        ) + struct.pack("<IQ", tensor.kind, place)
        body += tensor.data + bytes(-len(tensor.data) % 32)
    return head + bytes(-len(head) % 32) + body


def split_gguf(
    metadata: Mapping[str, tuple[int, Any]], tensors: Sequence[Tensor], count: int
) -> list[bytes]:
    """The files of a model in `count` parts, as llama.cpp splits it."""
    parts = []
    for number in range(count):
        keys = {
            "split.no": (UINT16, number),
            "split.count": (UINT16, count),
            "split.tensors.count": (INT32, len(tensors)),
        }
        if number == 0:
            keys = {**metadata, **keys}
        parts.append(write_gguf(keys, tensors[number::count]))
    return parts


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(
            _value(element, item) for item in values
        )
    return struct.pack("<" + _CODES[kind], value)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order that llama.cpp's converter gives queries and keys."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, -1)
        .swapaxes(1, 2)
        .reshape(rows, -1)
    )


def llama_metadata(**changes: tuple[int, Any] | None) -> dict[str, tuple[int, Any]]:
    """Metadata of the tiny llama (2 layers, 4 heads of 16, 2 KV heads); a change of None removes the key."""
    vocab = sorted(
        tiny_tokenizer().get_vocab(with_added_tokens=True).items(),
        key=lambda item: item[1],
    )
    tokens = [token for token, _ in vocab] + [
        f"<|unused{index}|>" for index in range(384 - len(vocab))
    ]
    metadata: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "llama.block_count": (UINT32, 2),
        "llama.context_length": (UINT32, 512),
        "llama.embedding_length": (UINT32, 64),
        "llama.feed_forward_length": (UINT32, 96),
        "llama.attention.head_count": (UINT32, 4),
        "llama.attention.head_count_kv": (UINT32, 2),
        "llama.rope.freq_base": (FLOAT32, 10000.0),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
        "llama.rope.dimension_count": (UINT32, 16),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "smollm"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (
            ARRAY,
            (INT32, [_token_type(token) for token in tokens]),
        ),
        "tokenizer.ggml.merges": (
            ARRAY,
            (STRING, ["t h", "Ġ th", "Ġth e", "i n", "e r", "Ġ a"]),
        ),
        "tokenizer.ggml.bos_token_id": (UINT32, 1),
        "tokenizer.ggml.eos_token_id": (UINT32, 2),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
        "tokenizer.chat_template": (STRING, CHAT_TEMPLATE),
    }
    for key, change in changes.items():
        if change is None:
            metadata.pop(key)
        else:
            metadata[key] = change
    return metadata


def _token_type(token: str) -> int:
    return 3 if token in SPECIAL_TOKENS else 5 if token.startswith("<|unused") else 1


def llama_tensors(
    kind: int = F32, seed: int = 0
) -> tuple[list[Tensor], dict[str, np.ndarray]]:
    """The tiny llama's tensors as GGUF holds them, and its weights by mlx-lm's names before encoding."""
    random = np.random.default_rng(seed)
    tensors: list[Tensor] = []
    weights: dict[str, np.ndarray] = {}

    def add(name: str, mlx_name: str, shape: tuple[int, ...], heads: int = 0) -> None:
        scale = 1.0 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        values = (random.standard_normal(shape) * scale).astype(np.float32) + (
            1.0 if len(shape) == 1 else 0.0
        )
        stored = permute(values, heads) if heads else values
        encoding = F32 if len(shape) == 1 else kind
        weights[mlx_name] = values
        tensors.append(Tensor(name, shape, encoding, encode(stored, encoding)))

    add("token_embd.weight", "model.embed_tokens.weight", (384, 64))
    for layer in range(2):
        gguf, mlx = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{gguf}.attn_norm.weight", f"{mlx}.input_layernorm.weight", (64,))
        add(
            f"{gguf}.attn_q.weight", f"{mlx}.self_attn.q_proj.weight", (64, 64), heads=4
        )
        add(
            f"{gguf}.attn_k.weight", f"{mlx}.self_attn.k_proj.weight", (32, 64), heads=2
        )
        add(f"{gguf}.attn_v.weight", f"{mlx}.self_attn.v_proj.weight", (32, 64))
        add(f"{gguf}.attn_output.weight", f"{mlx}.self_attn.o_proj.weight", (64, 64))
        add(f"{gguf}.ffn_norm.weight", f"{mlx}.post_attention_layernorm.weight", (64,))
        add(f"{gguf}.ffn_gate.weight", f"{mlx}.mlp.gate_proj.weight", (96, 64))
        add(f"{gguf}.ffn_up.weight", f"{mlx}.mlp.up_proj.weight", (96, 64))
        add(f"{gguf}.ffn_down.weight", f"{mlx}.mlp.down_proj.weight", (64, 96))
    add("output_norm.weight", "model.norm.weight", (64,))
    return tensors, weights
