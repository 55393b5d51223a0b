"""Keys that files leave out, or write otherwise, mean what llama.cpp's loader takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.gguf import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    Tensor,
    llama_metadata,
    llama_tensors,
    write_gguf,
)

ROPE = "llama.rope.scaling"
TOKENS = mx.array([[3, 14, 15, 92, 65]])


def opened(folder: Path, *tensors: Tensor, **keys: Any) -> GGUFFile:
    """The tiny llama with other keys, and tensors beside its own."""
    path = folder / "tiny.gguf"
    all_tensors = [*llama_tensors()[0], *tensors]
    path.write_bytes(write_gguf(llama_metadata(**keys), all_tensors))
    return GGUFFile(path)


def vector(name: str, values: Any) -> Tensor:
    array = np.asarray(values, dtype=np.float32)
    return Tensor(name, array.shape, F32, array.tobytes())


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({f"{ROPE}.factor": (FLOAT32, 4.0)}, 4.0),
        ({"llama.rope.scale_linear": (FLOAT32, 2.0)}, 2.0),
        ({f"{ROPE}.type": (STRING, "linear"), f"{ROPE}.factor": (FLOAT32, 4.0)}, 4.0),
        ({f"{ROPE}.type": (STRING, "none"), f"{ROPE}.factor": (FLOAT32, 4.0)}, 1.0),
        ({f"{ROPE}.type": (STRING, "linear")}, 1.0),
        ({f"{ROPE}.factor": (FLOAT32, 0.0)}, 1.0),
        (
            {
                "llama.rope.scale_linear": (FLOAT32, 2.0),
                f"{ROPE}.factor": (FLOAT32, 4.0),
            },
            4.0,
        ),
    ],
)
def test_positions_are_scaled(
    tmp_path: Path, keys: dict[str, Any], factor: float
) -> None:
    config = gguf_config(opened(tmp_path, **keys))
    rope = build_model(config).layers[0].self_attn.rope
    assert rope.scale == 1 / factor


def test_the_base_is_ten_thousand_where_none_is_stated(tmp_path: Path) -> None:
    config = gguf_config(opened(tmp_path, **{"llama.rope.freq_base": None}))
    assert config["rope_theta"] == 10000.0


def test_yarn_takes_what_the_file_says(tmp_path: Path) -> None:
    keys = {
        f"{ROPE}.type": (STRING, "yarn"),
        f"{ROPE}.factor": (FLOAT32, 4.0),
        f"{ROPE}.yarn_beta_fast": (FLOAT32, 16.0),
        f"{ROPE}.attn_factor": (FLOAT32, 0.5),
    }
    config = gguf_config(opened(tmp_path, **keys))
    scaling = config["rope_scaling"]
    # Without a key the model was trained on the whole of its context.
    assert scaling["original_max_position_embeddings"] == 512
    assert scaling["beta_fast"] == 16.0
    rope = build_model(config).layers[0].self_attn.rope
    assert math.isclose(rope.mscale, 0.5 * (0.1 * math.log(4) + 1))
    keys[f"{ROPE}.yarn_ext_factor"] = (FLOAT32, 0.5)
    with pytest.raises(UnsupportedModelError, match="yarn_ext_factor"):
        gguf_config(opened(tmp_path, **keys))


def test_two_scalings_contradict_each_other(tmp_path: Path) -> None:
    factors = vector("rope_freqs.weight", [1.0] * 8)
    assert gguf_config(opened(tmp_path, factors))["rope_scaling"]["factor"] == 1.0
    keys = {f"{ROPE}.factor": (FLOAT32, 4.0)}
    with pytest.raises(ModelFileError, match=r"factor' is 4, and tensor 'rope_freqs"):
        gguf_config(opened(tmp_path, factors, **keys))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.causal", (BOOL, False)),
        ("attention.clamp_kqv", (FLOAT32, 8.0)),
        ("logit_scale", (FLOAT32, 0.5)),
        ("embedding_scale", (FLOAT32, 12.0)),
        ("residual_scale", (FLOAT32, 0.2)),
        ("rope.scaling.attn_factor", (FLOAT32, 1.5)),
        ("attention.head_count_kv", (ARRAY, (INT32, [2, 4]))),
        ("rope.dimension_count", (UINT32, 8)),
    ],
)
def test_what_is_not_computed_is_refused(
    tmp_path: Path, key: str, value: tuple[int, Any]
) -> None:
    with pytest.raises(RvllmError, match=key.rpartition(".")[2] + "|RoPE over 8"):
        gguf_config(opened(tmp_path, **{f"llama.{key}": value}))


def test_keys_that_change_nothing_are_ignored(tmp_path: Path) -> None:
    keys = {
        "llama.attention.causal": (BOOL, True),
        "llama.logit_scale": (FLOAT32, 1.0),
        "llama.expert_count": (UINT32, 0),
        "llama.attention.head_count_kv": (ARRAY, (INT32, [2, 2])),
        "llama.attention.value_length": (UINT32, 16),
        "llama.rope.scaling.finetuned": (BOOL, True),
    }
    config = gguf_config(opened(tmp_path, **keys))
    assert config["num_key_value_heads"] == 2


def test_a_llama_has_the_biases_that_are_there(tmp_path: Path) -> None:
    """Qwen's first models in Llama's clothes: biases of three projections."""
    random = np.random.default_rng(1)
    biases = []
    for layer in range(2):
        for name, rows in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32)):
            values = random.standard_normal(rows)
            biases.append(vector(f"blk.{layer}.{name}.bias", values))
    path = opened(tmp_path, *biases).path
    module = load_model(locate(str(path))).module
    attention = module.layers[1].self_attn
    assert float(mx.abs(attention.v_proj.bias).max()) > 0.1
    assert float(mx.abs(attention.o_proj.bias).max()) == 0.0
    plain = load_model(locate(str(opened(tmp_path).path))).module
    assert "bias" not in plain.layers[1].self_attn.v_proj
    assert not np.allclose(np.array(module(TOKENS)), np.array(plain(TOKENS)))


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({}, [2]),
        ({"eot_token_id": 5}, [2, 5]),
        ({"eot_token_id": 5, "eom_token_id": 6, "fim_pad_token_id": 7}, [2, 5, 6, 7]),
        ({"eos_token_id": None}, []),
        ({"eot_token_id": 0xFFFFFFFF}, [2]),
    ],
)
def test_every_end_that_the_file_names_counts(
    tmp_path: Path, keys: dict[str, int | None], ends: list[int]
) -> None:
    changes: dict[str, Any] = {}
    for name, token in keys.items():
        changes[f"tokenizer.ggml.{name}"] = None if token is None else (UINT32, token)
    assert gguf_config(opened(tmp_path, **changes))["eos_token_id"] == ends


def test_an_end_that_is_no_token_names_both_sources(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": (UINT32, 9999)}
    with pytest.raises(ModelFileError, match=r"eot_token_id.*tokens' has 384"):
        gguf_config(opened(tmp_path, **keys))
