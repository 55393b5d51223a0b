"""Bundles: the same model out as in, from every format, and no changed byte goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.commands.pack import pack_model
from rvllm_local.errors import (
    DownloadError,
    ModelFileError,
    RvllmError,
    UnsupportedModelError,
)
from rvllm_local.models import bundle
from rvllm_local.models.bundle import open_bundle
from rvllm_local.models.bundle_format import (
    ALIGNMENT,
    MANIFEST,
    PADDING,
    WEIGHTS,
    Manifest,
    read_manifest,
)
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import load_model, open_native
from rvllm_local.models.locate import locate
from rvllm_local.models.safetensors_check import read_header
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support import gguf
from tests.support.gguf import llama_metadata, llama_tensors, write_gguf
from tests.support.spm import trained
from tests.support.tiny import save_tiny
from tests.text.test_sentencepiece import spm_keys

TOKENS = mx.array([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RVLLM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_model(
        locate(str(save_tiny("llama", tmp_path / "tiny"))), tmp_path / "tiny.rvllm"
    )
    return tmp_path / "tiny.rvllm"


def same_model(left: Any, right: Any) -> None:
    found, expected = (
        dict(tree_flatten(left.module.parameters())),
        dict(tree_flatten(right.module.parameters())),
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert mx.array_equal(found[name], value).item(), name
    assert left.eos_token_ids == right.eos_token_ids


@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "gpt_oss", "qwen3_moe"])
def test_a_folder_comes_out_as_it_went_in(tmp_path: Path, arch: str) -> None:
    folder = save_tiny(arch, tmp_path / "tiny")
    pack_model(locate(str(folder)), tmp_path / "tiny.rvllm")
    files = locate(str(tmp_path / "tiny.rvllm"))
    assert (files.kind, files.name) == ("bundle", "tiny")
    same_model(load_model(files), load_model(locate(str(folder))))
    assert describe(files).weights_bytes == load_model(files).weights_bytes
    left, right = read_tokenizer(files), read_tokenizer(locate(str(folder)))
    assert left.encode("the cat 🙂") == right.encode("the cat 🙂")
    assert left.chat_template == right.chat_template


@pytest.mark.parametrize("bits", [4, 8, "mixed", "mxfp4"])
def test_quantized_weights_keep_their_format(tmp_path: Path, bits: int | str) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    native = open_native(locate(str(folder)))

    def choose(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(layer, "to_quantized"):
            return False
        if bits == "mixed" and "down_proj" in path:
            return {"group_size": 32, "bits": 8}
        return True

    plan = {"group_size": 32, "bits": bits if isinstance(bits, int) else 4}
    mode = {"mode": "mxfp4"} if bits == "mxfp4" else {}
    nn.quantize(native.module, **plan, **mode, class_predicate=choose)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(native.module.parameters())),
    )
    own = {
        f"model.layers.{layer}.mlp.down_proj": {"group_size": 32, "bits": 8}
        for layer in range(3)
    }
    plan = {**plan, **mode, **(own if bits == "mixed" else {})}
    (folder / "config.json").write_text(
        json.dumps({**native.config, "quantization": plan})
    )
    pack_model(locate(str(folder)), tmp_path / "tiny.rvllm")
    files = locate(str(tmp_path / "tiny.rvllm"))
    same_model(open_native(files), open_native(locate(str(folder))))
    same_model(load_model(files), load_model(locate(str(folder))))
    assert (
        "QuantizedLinear"
        in type(open_native(files).module.layers[0].mlp.down_proj).__name__
    )


@pytest.mark.parametrize("kind", [gguf.Q4_1, gguf.Q8_0, gguf.F16])
def test_a_gguf_file_becomes_a_bundle(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(write_gguf(llama_metadata(), llama_tensors(kind)[0]))
    pack_model(locate(str(path)), tmp_path / "tiny.rvllm")
    files = locate(str(tmp_path / "tiny.rvllm"))
    same_model(open_native(files), open_native(locate(str(path))))
    left, right = read_tokenizer(files), read_tokenizer(locate(str(path)))
    messages = [{"role": "user", "content": "why?"}]
    assert left.encode_chat(messages) == right.encode_chat(messages)
    assert left.encode("the héllo 日本 12 🙂") == right.encode("the héllo 日本 12 🙂")
    assert (left.bos_token, left.eos_token) == (right.bos_token, right.eos_token)


def test_a_sentencepiece_vocabulary_goes_along(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    keys = spm_keys(trained(), "llama")
    size = len(keys["tokenizer.ggml.tokens"][1][1])
    tensors = llama_tensors()[0]
    rows = np.random.default_rng(0).standard_normal((size, 64)).astype(np.float32)
    tensors[0] = gguf.Tensor("token_embd.weight", rows.shape, gguf.F32, rows.tobytes())
    path.write_bytes(write_gguf(keys, tensors))
    pack_model(locate(str(path)), tmp_path / "tiny.rvllm")
    left, right = (
        read_tokenizer(locate(str(where))) for where in (tmp_path / "tiny.rvllm", path)
    )
    assert left.encode(" the cat <s> 日🙂") == right.encode(" the cat <s> 日🙂")
    assert left.encode("")[0] == left.bos_token_id


def test_float32_bundles_need_no_widening(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(write_gguf(llama_metadata(), llama_tensors(gguf.Q4_1)[0]))
    pack_model(locate(str(path)), tmp_path / "wide.rvllm", as_float32=True)
    files = locate(str(tmp_path / "wide.rvllm"))
    same_model(open_native(files), load_model(locate(str(path))))
    assert load_model(files).config["torch_dtype"] == "float32"


def test_every_tensor_lies_on_a_boundary(packed: Path) -> None:
    tensors, _ = read_header(packed / WEIGHTS)
    assert all(
        row.start % ALIGNMENT == 0
        for name, row in tensors.items()
        if not name.startswith(PADDING)
    )
    assert (packed / WEIGHTS).stat().st_size % ALIGNMENT == 0
    manifest = read_manifest(packed)
    assert manifest.parsers == {"reasoning": [None, None], "tools": None}
    assert manifest.recipe["source"] == "tiny"
    assert (
        hashlib.sha256((packed / WEIGHTS).read_bytes()).hexdigest()
        == manifest.weights.sha256
    )


def flip(path: Path, place: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


@pytest.mark.parametrize(
    "name",
    [MANIFEST, "config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS],
)
def test_a_flipped_byte_anywhere_is_refused(packed: Path, name: str) -> None:
    load_model(locate(str(packed)))  # the weights are remembered as right from here on
    size = (packed / name).stat().st_size
    places = (
        range(size)
        if name == MANIFEST
        else sorted({0, 7, 8, size - 1, *range(3, size, size // 25)})
    )
    for place in places:
        bit = 1 << place % 8
        flip(packed / name, place, bit)
        with pytest.raises(ModelFileError):
            open_bundle(packed)
        flip(packed / name, place, bit)
    open_bundle(packed, verify=True)


def test_weights_are_read_for_their_checksum_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    honest = bundle.file_sha256
    monkeypatch.setattr(
        bundle, "file_sha256", lambda path: read.append(path) or honest(path)
    )
    for _ in range(3):
        open_bundle(packed)
    assert len(read) == 1
    open_bundle(packed, verify=True)
    assert len(read) == 2
    os.utime(packed / WEIGHTS, (1, 1))
    open_bundle(packed)
    assert len(read) == 3


def test_other_files_are_refused(packed: Path, tmp_path: Path) -> None:
    (packed / ".DS_Store").write_bytes(b"")
    open_bundle(packed)
    (packed / "chat_template.jinja").write_text("{{ 1 }}")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja"):
        open_bundle(packed)
    (packed / "chat_template.jinja").unlink()
    outside = tmp_path / "outside.json"
    (packed / "config.json").rename(outside)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_model(locate(str(packed)))
    (packed / "config.json").symlink_to(outside)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_model(locate(str(packed)))


def with_manifest(packed: Path, **changes: Any) -> None:
    """Write a manifest with right checksums of wrong claims."""
    value = {
        key: part
        for key, part in json.loads((packed / MANIFEST).read_bytes()).items()
        if key != "checksum"
    }

    def spell(part: Any) -> bytes:
        return (json.dumps(part, sort_keys=True, indent=1) + "\n").encode()

    value.update(changes)
    (packed / MANIFEST).write_bytes(
        spell({**value, "checksum": hashlib.sha256(spell(value)).hexdigest()})
    )


GOOD = {"size": 1, "sha256": "0" * 64}
HOSTILE: dict[str, dict[str, Any]] = {
    "other format": {"format": "zip"},
    "version 0": {"version": 0},
    "version is text": {"version": "1"},
    "no files": {"files": {}},
    "files is a list": {"files": []},
    "a path": {"files": {"config.json": GOOD, "../evil": GOOD}},
    "an absolute path": {"files": {"config.json": GOOD, "/etc/passwd": GOOD}},
    "code": {"files": {"config.json": GOOD, "modeling.py": GOOD}},
    "negative size": {"files": {"config.json": {"size": -1, "sha256": "0" * 64}}},
    "size is a float": {"files": {"config.json": {"size": 1.0, "sha256": "0" * 64}}},
    "no digest": {"files": {"config.json": {"size": 1}}},
    "short digest": {"files": {"config.json": {"size": 1, "sha256": "00"}}},
    "other weight file": {"weights": {"file": "../w", "alignment": ALIGNMENT}},
    "weights is null": {"weights": None},
    "parsers is text": {"parsers": "hermes"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifests_are_refused(packed: Path, what: str) -> None:
    with_manifest(packed, **HOSTILE[what])
    with pytest.raises(ModelFileError) as caught:
        load_model(locate(str(packed)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"format": "rvllm-bundle"}'],
)
def test_manifests_that_are_none(packed: Path, raw: bytes) -> None:
    (packed / MANIFEST).write_bytes(raw)
    with pytest.raises(ModelFileError):
        load_model(locate(str(packed)))


def test_newer_versions_are_named(packed: Path) -> None:
    with_manifest(packed, version=2)
    with pytest.raises(UnsupportedModelError, match="version 2"):
        open_bundle(packed)


def test_cut_weights_are_refused(packed: Path) -> None:
    whole = (packed / WEIGHTS).read_bytes()
    for length in (0, 7, 100, ALIGNMENT, len(whole) - ALIGNMENT, len(whole) - 1):
        (packed / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=WEIGHTS):
            load_model(locate(str(packed)))


def test_unaligned_weights_are_refused(packed: Path) -> None:
    """A safetensors file of another tool with right checksums is still no bundle."""
    module = open_native(locate(str(packed))).module
    values = {
        name: mx.array(np.array(value))
        for name, value in tree_flatten(module.parameters())
    }
    mx.save_safetensors(str(packed / "new"), values)
    (packed / "new.safetensors").replace(packed / WEIGHTS)
    data = (packed / WEIGHTS).read_bytes()
    _, header = read_header(packed / WEIGHTS)
    record = {
        "file": WEIGHTS,
        "alignment": ALIGNMENT,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "header_sha256": hashlib.sha256(header).hexdigest(),
    }
    with_manifest(packed, weights=record)
    with pytest.raises(ModelFileError, match="is not a bundle's"):
        load_model(locate(str(packed)))


def test_packing_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = locate(str(save_tiny("llama", tmp_path / "tiny")))
    target = tmp_path / "out" / "tiny.rvllm"
    monkeypatch.setattr(
        Manifest,
        "to_bytes",
        lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(DownloadError, match="No space left"):
        pack_model(files, target)
    assert list(target.parent.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(
        bundle.shutil, "disk_usage", lambda _: bundle.shutil._ntuple_diskusage(10, 9, 1)
    )
    with pytest.raises(DownloadError, match="1 are free"):
        pack_model(files, target)
    monkeypatch.undo()
    pack_model(files, target)
    with pytest.raises(ModelFileError, match="exists already"):
        pack_model(files, target)
    assert [child.name for child in target.parent.iterdir()] == ["tiny.rvllm"]


def test_a_bundle_that_lies_about_its_model_is_refused(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    data = json.dumps({**config, "num_hidden_layers": 9}).encode()
    (packed / "config.json").write_bytes(data)
    files = json.loads((packed / MANIFEST).read_bytes())["files"]
    files["config.json"] = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with_manifest(packed, files=files)
    with pytest.raises(RvllmError, match="fit the configuration"):
        load_model(locate(str(packed)))
