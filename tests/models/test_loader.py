"""Model folders: sound ones load, quantized ones too, and every damaged one is refused with a typed error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import (
    ModelFileError,
    ModelNotFoundError,
    RvllmError,
    UnsupportedModelError,
)
from rvllm_local.models.architecture import import_family
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "tiny")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...})
    )


def raw_safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_folder_loads_as_float32(folder: Path) -> None:
    loaded = load_model(locate(str(folder)))
    expected = dict(tree_flatten(tiny_model("llama")[0].parameters()))
    found = dict(tree_flatten(loaded.module.parameters()))
    assert found.keys() == expected.keys()
    assert all(
        np.array_equal(np.array(found[name]), np.array(expected[name]))
        for name in expected
    )
    assert loaded.weights_bytes == sum(value.nbytes for value in expected.values())
    assert (loaded.model_type, loaded.context_length, loaded.eos_token_ids) == (
        "llama",
        2048,
        (0,),
    )
    assert loaded.fingerprint == load_model(locate(str(folder))).fingerprint


@pytest.mark.parametrize("arch", ["llama", "qwen3_moe", "gemma2"])
def test_quantized_weights_become_float32_on_a_cpu(tmp_path: Path, arch: str) -> None:
    folder = save_tiny(arch, tmp_path / "tiny")
    model, _ = tiny_model(arch)

    def fits(_: str, layer: nn.Module) -> bool:
        return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0

    nn.quantize(model, group_size=32, bits=8, class_predicate=fits)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters()))
    )
    change_config(folder, quantization={"group_size": 32, "bits": 8})
    loaded = load_model(locate(str(folder)))
    assert all(
        value.dtype == mx.float32
        for _, value in tree_flatten(loaded.module.parameters())
    )
    tokens = mx.array([[5, 6, 7]])
    np.testing.assert_allclose(
        np.array(loaded.module(tokens)), np.array(model(tokens)), rtol=1e-2, atol=1e-2
    )


def test_several_end_tokens_come_from_the_generation_settings(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert load_model(locate(str(folder))).eos_token_ids == (2, 0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": ...}, ModelFileError),
        ({"model_type": 7}, ModelFileError),
        ({"model_type": "lama"}, UnsupportedModelError),
        ({"model_type": "../../os"}, UnsupportedModelError),
        ({"model_type": "switch_layers"}, UnsupportedModelError),
        ({"model_file": "evil.py"}, UnsupportedModelError),
        ({"hidden_size": ...}, ModelFileError),
        ({"hidden_size": -4}, ModelFileError),
        ({"hidden_size": 2**40}, ModelFileError),
        ({"num_hidden_layers": 10**9}, ModelFileError),
        ({"num_hidden_layers": True}, ModelFileError),
        ({"vocab_size": "many"}, ModelFileError),
        ({"vocab_size": 100}, ModelFileError),
        ({"num_hidden_layers": 2}, ModelFileError),
        ({"num_hidden_layers": 4}, ModelFileError),
        ({"max_position_embeddings": "long"}, ModelFileError),
        ({"quantization": {"bits": 4}}, ModelFileError),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError),
    ],
)
def test_wrong_configurations(
    folder: Path, changes: dict[str, Any], error: type[RvllmError]
) -> None:
    change_config(folder, **changes)
    with pytest.raises(error) as caught:
        load_model(locate(str(folder)))
    assert "\n" not in str(caught.value)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALFORMED = {
    "empty": b"",
    "short": b"\x00\x01",
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "not JSON": raw_safetensors(b"{nope", b""),
    "not an object": raw_safetensors([1], b""),
    "unknown dtype": raw_safetensors({"a": {**F32, "dtype": "X9"}}, bytes(8)),
    "past the end": raw_safetensors({"a": {**F32, "data_offsets": [0, 800]}}, bytes(8)),
    "backwards": raw_safetensors({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    "size against shape": raw_safetensors({"a": {**F32, "shape": [3]}}, bytes(8)),
    "overlap": raw_safetensors(
        {"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)
    ),
    "hole": raw_safetensors(
        {"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, bytes(24)
    ),
    "same name twice": raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        bytes(16),
    ),
    "enormous header": struct.pack("<Q", 40 << 20) + b"{}".ljust(40 << 20),
    "same tensor twice": raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "trailing bytes": raw_safetensors({"a": F32}, bytes(99)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_weight_files(folder: Path, what: str) -> None:
    (folder / "model.safetensors").write_bytes(MALFORMED[what])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load_model(locate(str(folder)))


def test_cut_weight_files(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            load_model(locate(str(folder)))


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": 3}},
        {"weight_map": ["model.safetensors"]},
        {},
    ],
)
def test_wrong_indexes(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError):
        load_model(locate(str(folder)))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model-00002-of-00002.safetensors"},
        {"nobody.has.it": "model.safetensors"},
    ],
)
def test_a_stale_index_does_not_refuse_whole_weights(
    folder: Path, weight_map: dict[str, str]
) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert load_model(locate(str(folder))).vocab_size == 384
    path = folder / "model.safetensors"
    path.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelFileError, match="2 of 2 is missing"):
        load_model(locate(str(folder)))


def test_code_of_a_native_architecture_is_ignored(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModel": "evil.Model"})
    assert load_model(locate(str(folder))).model_type == "llama"


def test_ends_are_all_that_the_settings_name(folder: Path) -> None:
    change_config(folder, eos_token_id=[5, 0])
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert load_model(locate(str(folder))).eos_token_ids == (2, 0, 5)
    generation.write_text(json.dumps({"eos_token_id": 9999}))
    with pytest.raises(ModelFileError, match=r"generation_config.*9999.*vocab_size"):
        load_model(locate(str(folder)))


def test_settings_may_begin_with_a_mark_and_name_no_end(folder: Path) -> None:
    change_config(folder, eos_token_id=[])
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    files = locate(str(folder))
    assert load_model(files).eos_token_ids == ()
    assert read_tokenizer(files).chat_template is not None


def test_the_folder_one_stands_in_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert locate(".").name == folder.name


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="no model"):
        load_model(locate(str(folder)))
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        locate(str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="give the folder"):
        locate(str(folder / "config.json"))
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        locate(str(tmp_path / "nothing"))
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        locate("smolm2-135")
    for name in ("~no-such-user/tiny", "a" * 300, "a" * 300 + ".gguf"):
        with pytest.raises(ModelNotFoundError):
            locate(name)


def test_only_the_asked_for_definition_is_imported() -> None:
    assert import_family("mistral").__name__ == "mlx_lm.models.llama"
    with pytest.raises(UnsupportedModelError, match="llama"):
        import_family("llamma")
