"""GGUF files: what a right one means, and that every wrong one is refused with a typed error before it is loaded."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import gguf_packed_weights, gguf_weights
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.quantized import quantize_as_packed
from rvllm_local.models.to_float32 import widen_to_float32
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support import gguf
from tests.support.gguf import (
    ARRAY,
    FLOAT32,
    STRING,
    UINT32,
    Tensor,
    llama_metadata,
    llama_tensors,
    write_gguf,
)

KINDS = {
    "F32": gguf.F32,
    "F16": gguf.F16,
    "BF16": gguf.BF16,
    "Q4_0": gguf.Q4_0,
    "Q4_1": gguf.Q4_1,
    "Q8_0": gguf.Q8_0,
}
TOLERANCE = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 1e-2,
    "Q4_0": 0.6,
    "Q4_1": 0.35,
    "Q8_0": 0.03,
}  # of values near 1


def save(folder: Path, data: bytes) -> Path:
    path = folder / "tiny.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_out_as_they_went_in(tmp_path: Path, kind: str) -> None:
    tensors, weights = llama_tensors(KINDS[kind])
    loaded = load_model(
        locate(str(save(tmp_path, write_gguf(llama_metadata(), tensors))))
    )
    parameters = dict(tree_flatten(loaded.module.parameters()))
    assert parameters.keys() == weights.keys()
    for name, expected in weights.items():
        value = np.array(parameters[name])
        assert value.dtype == np.float32
        assert np.abs(value - expected).max() <= TOLERANCE[kind], name
    assert (loaded.context_length, loaded.vocab_size, loaded.eos_token_ids) == (
        512,
        384,
        (2,),
    )
    assert np.isfinite(np.array(loaded.module(mx.array([[3, 4, 5]])))).all()


def test_scalar_decoding_of_a_block(tmp_path: Path) -> None:
    """Q4_0, Q4_1 and Q8_0 by their definitions, value by value."""
    random = np.random.default_rng(5)
    for kind, size in ((gguf.Q4_0, 18), (gguf.Q4_1, 20), (gguf.Q8_0, 34)):
        block = bytearray(random.integers(0, 256, size=size, dtype=np.uint8).tobytes())
        block[:2] = struct.pack("<e", 0.37)
        block[2:4] = struct.pack("<e", -1.25) if kind == gguf.Q4_1 else block[2:4]
        scale = struct.unpack_from("<e", block)[0]
        if kind == gguf.Q8_0:
            expected = [scale * value for value in struct.unpack("<32b", block[2:])]
        else:
            start, low = (2, -8 * scale) if kind == gguf.Q4_0 else (4, -1.25)
            codes = [byte & 15 for byte in block[start:]] + [
                byte >> 4 for byte in block[start:]
            ]
            expected = [scale * code + low for code in codes]
        file = GGUFFile(
            save(tmp_path, write_gguf({}, [Tensor("t", (1, 32), kind, bytes(block))]))
        )
        np.testing.assert_allclose(file.read("t")[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_packed_for_the_gpu_is_the_same_model(tmp_path: Path, kind: str) -> None:
    """MLX's affine quantization holds exactly what the file says, row order of queries and keys included."""
    file = GGUFFile(
        save(tmp_path, write_gguf(llama_metadata(), llama_tensors(KINDS[kind])[0]))
    )
    config = gguf_config(file)
    plain, packed = (
        dict(gguf_weights(file, config)),
        dict(gguf_packed_weights(file, config)),
    )
    for name, expected in plain.items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in packed:
            assert expected.ndim == 1, name
            continue
        weight, scales, biases = (
            mx.array(packed[f"{path}.{part}"])
            for part in ("weight", "scales", "biases")
        )
        value = mx.dequantize(
            weight,
            scales.astype(mx.float32),
            biases.astype(mx.float32),
            32,
            8 if kind == "Q8_0" else 4,
        )
        np.testing.assert_allclose(
            np.array(value), expected, rtol=1e-6, atol=1e-6, err_msg=name
        )
    module = build_model(config)
    weights = {name: mx.array(value) for name, value in packed.items()}
    quantize_as_packed(module, weights)
    module.load_weights(list(weights.items()))
    assert type(module.layers[0].self_attn.q_proj).__name__ == "QuantizedLinear"
    widen_to_float32(module)
    tokens = mx.array([[3, 4, 5]])
    reference = load_model(locate(str(file.path))).module
    np.testing.assert_allclose(
        np.array(module(tokens)), np.array(reference(tokens)), rtol=0.02, atol=0.02
    )


def test_version_2_and_other_alignment(tmp_path: Path) -> None:
    tensor = Tensor("t", (2, 3), gguf.F32, np.arange(6, dtype=np.float32).tobytes())
    file = GGUFFile(
        save(
            tmp_path,
            write_gguf({"general.alignment": (UINT32, 32)}, [tensor], version=2),
        )
    )
    np.testing.assert_array_equal(file.read("t"), np.arange(6).reshape(2, 3))


def test_tokenizer_and_template_come_from_the_file(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(
        locate(str(save(tmp_path, write_gguf(llama_metadata(), llama_tensors()[0]))))
    )
    text = "the héllo 日本 12 🙂"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert (
        b"".join(tokenizer.id_to_bytes(token) or b"" for token in ids).decode() == text
    )
    chat = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert (
        tokenizer.decode(chat, skip_special=False)
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.count(1) == 2
    assert chat.count(2) == 1


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(llama_metadata(), llama_tensors(gguf.Q4_1)[0])
    last = 64 * 4  # the last tensor's bytes
    for length in sorted(
        {
            0,
            1,
            3,
            4,
            7,
            8,
            15,
            23,
            24,
            31,
            *range(40, len(whole) - last, len(whole) // 97),
        }
    ):
        with pytest.raises(ModelFileError, match=r"tiny\.gguf"):
            GGUFFile(save(tmp_path, whole[:length]))
    with pytest.raises(ModelFileError, match="reaches byte"):
        GGUFFile(save(tmp_path, whole[:-1]))


def test_flipped_header_bytes_never_crash(tmp_path: Path) -> None:
    """A changed byte may go unnoticed (a name, a number), but only typed errors may come out."""
    whole = write_gguf(llama_metadata(), llama_tensors()[0])
    random = np.random.default_rng(11)
    header = whole.index(b"output_norm.weight") + 40
    places = [*range(24), *random.integers(24, header, size=150).tolist()]
    for place in places:
        data = bytearray(whole)
        data[place] ^= int(random.integers(1, 256))
        path = save(tmp_path, bytes(data))
        with contextlib.suppress(RvllmError):
            load_model(locate(str(path)))
            read_tokenizer(locate(str(path)))


def _head(
    tensors: int, keys: int, rest: bytes = b"", version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def _one(shape: tuple[int, ...], kind: int, size: int, **more: int) -> bytes:
    return write_gguf({}, [Tensor("t", shape, kind, bytes(size), **more)])


def _texts(count: int, strings: bytes) -> bytes:
    """A key whose value is an array of strings."""
    kind = struct.pack("<IIQ", ARRAY, STRING, count)
    return _head(0, 1, struct.pack("<Q", 1) + b"k" + kind + strings)


MALFORMED_TEXTS = {
    "string is not UTF-8": _texts(
        2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"\xff\xfe"
    ),
    "bytes is not plausible": _texts(
        2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2**62)
    ),
    "9 bytes are wanted and 3 are left": _texts(
        2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 9) + b"abc"
    ),
    "8 bytes are wanted and 2 are left": _texts(2, struct.pack("<Q", 1) + b"abc"),
}


@pytest.mark.parametrize("what", MALFORMED_TEXTS)
def test_a_string_of_an_array_is_refused_in_the_words_for_any_string(
    tmp_path: Path, what: str
) -> None:
    with pytest.raises(ModelFileError, match=what):
        GGUFFile(save(tmp_path, MALFORMED_TEXTS[what]))


MALFORMED = {
    "empty": b"",
    "other magic": _head(0, 0, magic=b"GGML"),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "version 1": _head(0, 0, version=1),
    "version 9": _head(0, 0, version=9),
    "absurd tensor count": _head(2**63, 0),
    "absurd key count": _head(0, 2**40),
    "absurd key length": _head(0, 1, struct.pack("<Q", 2**62)),
    "key past the end": _head(0, 1, struct.pack("<Q", 1000) + b"abc"),
    "key not UTF-8": _head(
        0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", UINT32, 1)
    ),
    "unknown value type": _head(
        0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77) + bytes(8)
    ),
    "absurd array": _head(
        0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", ARRAY, UINT32, 2**60)
    ),
    "array past the end": _head(
        0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", ARRAY, UINT32, 9)
    ),
    "nested array": _head(
        0,
        1,
        struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(32),
    ),
    "same key twice": _head(
        0, 2, (struct.pack("<Q", 1) + b"k" + struct.pack("<II", UINT32, 1)) * 2
    ),
    "no dimensions": _one((), gguf.F32, 32),
    "five dimensions": _one((1, 1, 1, 1, 1), gguf.F32, 32),
    "zero dimension": _one((0, 4), gguf.F32, 32),
    "product overflows 64 bits": _one((2**32, 2**32, 2**32), gguf.F32, 32),
    "larger than the file": _one((64, 64), gguf.F32, 32),
    "row is not whole blocks": _one((4, 33), gguf.Q4_0, 128),
    "unaligned offset": _one((4,), gguf.F32, 64, offset=4),
    "offset past the end": _one((4,), gguf.F32, 64, offset=2**40),
    "offset near 2**64": _one((4,), gguf.F32, 64, offset=2**64 - 32),
    "alignment zero": write_gguf({"general.alignment": (UINT32, 0)}, []),
    "alignment 33": write_gguf({"general.alignment": (UINT32, 33)}, []),
    "alignment is text": write_gguf({"general.alignment": (STRING, "32")}, []),
    "same tensor twice": write_gguf(
        {},
        [
            Tensor("t", (8,), gguf.F32, bytes(32)),
            Tensor("t", (8,), gguf.F32, bytes(32)),
        ],
    ),
    "tensors overlap": write_gguf(
        {},
        [
            Tensor("a", (16,), gguf.F32, bytes(64)),
            Tensor("b", (16,), gguf.F32, bytes(64), offset=32),
        ],
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_headers_are_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(save(tmp_path, MALFORMED[what]))
    assert "\n" not in str(caught.value)


WRONG_KEYS: dict[str, tuple[int, object] | None] = {
    "llama.block_count": None,
    "llama.context_length": (STRING, "many"),
    "llama.embedding_length": (UINT32, 0),
    "llama.feed_forward_length": (UINT32, 2**31),
    "llama.attention.head_count": (UINT32, 7),
    "llama.attention.head_count_kv": (UINT32, 3),
    "llama.attention.layer_norm_rms_epsilon": (FLOAT32, float("nan")),
    "llama.rope.freq_base": (STRING, "x"),
    "tokenizer.ggml.tokens": (UINT32, 3),
}


@pytest.mark.parametrize("key", WRONG_KEYS)
def test_wrong_metadata_is_refused(tmp_path: Path, key: str) -> None:
    path = save(
        tmp_path,
        write_gguf(llama_metadata(**{key: WRONG_KEYS[key]}), llama_tensors()[0]),
    )
    with pytest.raises(ModelFileError, match=r"tiny\.gguf"):
        load_model(locate(str(path)))


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    tensors = llama_tensors()[0]
    other = llama_metadata(**{"general.architecture": (STRING, "mamba")})
    with pytest.raises(UnsupportedModelError, match="mamba"):
        load_model(locate(str(save(tmp_path, write_gguf(other, tensors)))))
    with pytest.raises(UnsupportedModelError, match="encoding 16"):
        GGUFFile(save(tmp_path, _one((1, 256), 16, 66)))
    scaled = llama_metadata(**{"llama.rope.scaling.type": (STRING, "spiral")})
    with pytest.raises(UnsupportedModelError, match="RoPE"):
        load_model(locate(str(save(tmp_path, write_gguf(scaled, tensors)))))


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "vector"])
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    tensors = llama_tensors()[0]
    place = next(
        index
        for index, tensor in enumerate(tensors)
        if tensor.name == "blk.1.attn_q.weight"
    )
    data = tensors[place].data
    replacement = {
        "missing": [],
        "extra": [
            tensors[place],
            Tensor("blk.2.attn_q.weight", (64, 64), gguf.F32, data),
        ],
        "shape": [Tensor("blk.1.attn_q.weight", (128, 32), gguf.F32, data)],
        "vector": [Tensor("blk.1.attn_q.weight", (4096,), gguf.F32, data)],
    }[change]
    path = save(
        tmp_path,
        write_gguf(
            llama_metadata(), [*tensors[:place], *replacement, *tensors[place + 1 :]]
        ),
    )
    with pytest.raises(ModelFileError):
        load_model(locate(str(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(3), "is missing"),
        (
            lambda tensors: tensors.append(
                Tensor("evil.weight", (4, 4), gguf.F32, bytes(64))
            ),
            "no place",
        ),
        (
            lambda tensors: tensors.append(
                Tensor("blk.0.attn_norm.bias", (64,), gguf.F32, bytes(256))
            ),
            "no place of its own",
        ),
        (
            lambda tensors: tensors.append(
                replace(tensors[3], name=tensors[3].name.replace("blk.", "blk.0"))
            ),
            "no place of",
        ),
        (
            lambda tensors: tensors.__setitem__(
                3, replace(tensors[3], shape=tensors[3].shape[::-1])
            ),
            "shape",
        ),
    ],
)
def test_tensors_are_held_against_the_model_before_any_is_read(
    tmp_path: Path,
    change: Callable[[list[Tensor]], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = list(llama_tensors()[0])
    change(tensors)
    (tmp_path / "model.gguf").write_bytes(write_gguf(llama_metadata(), tensors))
    monkeypatch.setattr(
        GGUFFile, "read_blocks", lambda *_arguments: pytest.fail("a tensor was read")
    )
    with pytest.raises((ModelFileError, UnsupportedModelError), match=message):
        load_model(locate(str(tmp_path / "model.gguf")))
