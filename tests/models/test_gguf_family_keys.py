"""gpt-oss, Llama 4 and Mixtral as GGUF are the same models as their safetensors.

The files are written by the `gguf` package, with the names of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import gguf_packed_weights, gguf_weights
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.quantized import quantize_as_packed
from tests.models.test_gguf_families import add_tensor, write_model
from tests.support.gguf import permute
from tests.support.tiny import tiny_model
from tests.support.zoo import zoo_model

TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38]])
# Parts of mlx-lm's names, and what GGUF files call them.
SHARED = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
GPT_OSS = {
    **SHARED,
    "self_attn.sinks": "attn_sinks.weight",
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
LLAMA4 = {
    **SHARED,
    "post_attention_layernorm": "ffn_norm",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.experts.gate_proj": "ffn_gate_exps",
    "feed_forward.experts.up_proj": "ffn_up_exps",
    "feed_forward.experts.down_proj": "ffn_down_exps",
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
    "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
}
MIXTRAL = {
    **SHARED,
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.switch_mlp.gate_proj": "ffn_gate_exps",
    "block_sparse_moe.switch_mlp.up_proj": "ffn_up_exps",
    "block_sparse_moe.switch_mlp.down_proj": "ffn_down_exps",
}
TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str, parts: dict[str, str]) -> str:
    """The name in a GGUF file of a parameter of mlx-lm's."""
    name = name.removeprefix("language_model.")
    if not name.startswith("model.layers."):
        stem, _, kind = name.rpartition(".")
        return f"{TOP[stem]}.{kind}"
    _, _, layer, rest = name.split(".", 3)
    if rest in parts:
        return f"blk.{layer}.{parts[rest]}"
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{parts[stem]}.{kind}"


def start_file(path: Path, name: str, config: dict[str, Any]) -> gguf.GGUFWriter:
    """A file with the keys that both families have."""
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_token_list([f"t{index}" for index in range(config["vocab_size"])])
    writer.add_eos_token_id(2)
    return writer


def finish(writer: gguf.GGUFWriter, module: Any, parts: dict[str, str]) -> None:
    for name, value in tree_flatten(module.parameters()):
        writer.add_tensor(gguf_name(name, parts), np.array(value))
    close(writer)


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def write_gpt_oss(path: Path, scaling: dict[str, Any] | None = None) -> Any:
    mx.random.seed(0)
    module, config = tiny_model("gpt_oss")
    if scaling is not None:
        module = build_model({**config, "rope_scaling": {**scaling, "truncate": False}})
    writer = start_file(path, "gpt-oss", config)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        original = scaling["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_sliding_window(config["sliding_window"])
    finish(writer, module, GPT_OSS)
    return module


def write_llama4(path: Path, used: int = 1) -> Any:
    mx.random.seed(0)
    module, whole = zoo_model("llama4")
    config = {**whole["text_config"], "num_experts_per_tok": used}
    writer = start_file(path, "llama4", config)
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    finish(writer, module, LLAMA4)
    return module


def test_a_llama_with_experts_is_mixtral(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    mx.random.seed(0)
    module, config = tiny_model("mixtral")
    config = {"head_dim": 16, **config}
    writer = start_file(path, "llama", config)
    writer.add_feed_forward_length(config["intermediate_size"])
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, value in tree_flatten(module.parameters()):
        array = np.array(value)
        for part, count in heads.items():
            if part in name:
                array = permute(array, count)
        writer.add_tensor(gguf_name(name, MIXTRAL), np.ascontiguousarray(array))
    close(writer)
    loaded = load_model(locate(str(path)))
    assert loaded.model_type == "mixtral"
    np.testing.assert_allclose(
        logits(loaded.module), logits(module), rtol=1e-4, atol=1e-4
    )


def logits(module: Any) -> np.ndarray[Any, Any]:
    return np.array(module(TOKENS).astype(mx.float32))


@pytest.mark.parametrize("scaling", [None, YARN])
def test_gpt_oss_is_the_same_model(
    tmp_path: Path, scaling: dict[str, Any] | None
) -> None:
    path = tmp_path / "model.gguf"
    module = write_gpt_oss(path, scaling)
    loaded = load_model(locate(str(path)))
    np.testing.assert_allclose(
        logits(loaded.module), logits(module), rtol=1e-4, atol=1e-4
    )
    assert loaded.config["layer_types"] == module.args.layer_types
    assert loaded.config["sliding_window"] == module.args.sliding_window


def test_llama4_is_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    module = write_llama4(path)
    loaded = load_model(locate(str(path)))
    np.testing.assert_allclose(
        logits(loaded.module), logits(module), rtol=1e-4, atol=1e-4
    )
    text = loaded.config["text_config"]
    assert (text["attention_chunk_size"], text["floor_scale"]) == (8192, 8192)
    assert loaded.eos_token_ids == (2,)


def test_llama4s_rotation_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "llama4.gguf"
    write_llama4(path)
    base, dim = 10000.0, 32
    wavelengths = 2 * np.pi * base ** (np.arange(0, dim, 2) / dim)
    factors = np.where(wavelengths > 8192, 16.0, 1.0).tolist()
    file = GGUFFile(add_tensor(path, tmp_path, "rope_freqs.weight", factors))
    scaling = gguf_config(file)["text_config"]["rope_scaling"]
    assert (scaling["factor"], scaling["high_freq_factor"]) == (16.0, 1.0)


def test_more_than_one_expert_a_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_llama4(path, used=2)
    with pytest.raises(UnsupportedModelError, match="2 experts a token"):
        load_model(locate(str(path)))


def test_experts_in_mxfp4_are_packed_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    mx.random.seed(0)
    module, config = tiny_model("gpt_oss")
    writer = start_file(path, "gpt-oss", config)
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_sliding_window(config["sliding_window"])
    kind = gguf.GGMLQuantizationType.MXFP4
    for name, value in tree_flatten(module.parameters()):
        array = np.array(value)
        if array.ndim < 3:
            writer.add_tensor(gguf_name(name, GPT_OSS), array)
            continue
        blocks = gguf.quantize(array, kind)
        writer.add_tensor(gguf_name(name, GPT_OSS), blocks, raw_dtype=kind)
    close(writer)
    file = GGUFFile(path)
    settings = gguf_config(file)
    weights = arrays(gguf_packed_weights(file, settings))
    packed = build_model(settings)
    quantize_as_packed(packed, weights)
    packed.load_weights(list(weights.items()))
    packed.set_dtype(mx.float32)
    whole = build_model(settings)
    whole.load_weights(list(arrays(gguf_weights(file, settings)).items()))
    np.testing.assert_allclose(logits(packed), logits(whole), rtol=2e-2, atol=2e-2)


def arrays(weights: Iterable[tuple[str, Any]]) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in weights}


def test_gemma3_takes_what_the_file_says_of_its_windows(tmp_path: Path) -> None:
    kind = gguf.GGUFValueType
    keys = {
        "gemma3.attention.sliding_window_pattern": (4, kind.UINT32),
        "gemma3.rope.freq_base_swa": (5000.0, kind.FLOAT32),
        "gemma3.rope.scaling.type": ("linear", kind.STRING),
        "gemma3.rope.scaling.factor": (8.0, kind.FLOAT32),
    }
    path, _ = write_model(tmp_path, "gemma3", **keys)
    config = gguf_config(GGUFFile(path))
    assert (config["sliding_window_pattern"], config["rope_local_base_freq"]) == (
        4,
        5000.0,
    )
    assert config["rope_scaling"]["factor"] == 8.0
