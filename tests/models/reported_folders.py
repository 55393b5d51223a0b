"""Model folders that were reported to other servers, described as changes to a sound one.

A case's tiny model is computed by its definition; its folder says the same in the form
that was reported, or something that nobody could serve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx import nn

Weights = dict[str, mx.array]
Fields = dict[str, Any]
ABSENT = ...

AFFINE4: Fields = {"group_size": 32, "bits": 4}
AFFINE6: Fields = {"group_size": 32, "bits": 6}
AFFINE8: Fields = {"group_size": 32, "bits": 8, "mode": "affine"}
MXFP4: Fields = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
MXFP8: Fields = {"group_size": 32, "bits": 8, "mode": "mxfp8"}


@dataclass(frozen=True)
class Reported:
    """A folder: who reported it, of what, and how it differs from a sound one.

    model: fields of the model itself. config: what its config.json says otherwise, in
    the text part where `in_text`. quantized: the packing, and those of layers by a part
    of their path. refused: what loading says, where it cannot be served.
    """

    source: str
    arch: str
    model: Fields = field(default_factory=dict)
    config: Fields = field(default_factory=dict)
    in_text: Fields = field(default_factory=dict)
    weights: Callable[[Weights], Weights] | None = None
    quantized: tuple[Fields, dict[str, Fields]] | None = None
    refused: str | None = None


def adding(*names: str) -> Callable[[Weights], Weights]:
    """Weights of other parts beside the model's."""

    def add(weights: Weights) -> Weights:
        others = {name: mx.ones((4, 8)) for name in names}
        return {**weights, **others}

    return add


def with_head(prefix: str = "") -> Callable[[Weights], Weights]:
    """The embedding once more, as a head."""

    def add(weights: Weights) -> Weights:
        embedding = next(
            name for name in weights if name.endswith("embed_tokens.weight")
        )
        return {**weights, f"{prefix}lm_head.weight": weights[embedding]}

    return add


def without(*names: str) -> Callable[[Weights], Weights]:
    def drop(weights: Weights) -> Weights:
        return {name: weights[name] for name in weights if name not in names}

    return drop


def renaming(theirs: str, ours: str) -> Callable[[Weights], Weights]:
    """A part of the names, as another writer calls it."""

    def rename(weights: Weights) -> Weights:
        return {name.replace(ours, theirs, 1): weights[name] for name in weights}

    return rename


def pack(model: nn.Module, default: Fields, special: dict[str, Fields]) -> None:
    """Quantize a model's layers, those that `special` names in their own way."""

    def choose(path: str, layer: nn.Module) -> bool | Fields:
        if not hasattr(layer, "to_quantized") or layer.weight.shape[-1] % 32:
            return False
        for part, settings in special.items():
            if part in path:
                return settings
        return default

    nn.quantize(model, class_predicate=choose)


_TIED: Fields = {"tie_word_embeddings": True}
_OWN: Fields = {"tie_word_embeddings": False}
_SILENT: Fields = {"tie_word_embeddings": ABSENT}
_BASE: Fields = {"rope_theta": 50_000.0}
_YARN: Fields = {"rope_type": "yarn", "factor": 4.0}
_LLAMA3: Fields = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
}
REPORTED = [
    # A head that is the embedding, and is in the files all the same.
    *(
        Reported("mlx-lm 1298", arch, _TIED, weights=with_head())
        for arch in ("granite", "phi3", "olmo2", "exaone4", "minicpm", "qwen3_next")
    ),
    Reported("mlx-lm 1055", "lfm2", weights=with_head()),
    Reported("mlx-examples 564", "qwen2", _TIED, weights=with_head()),
    Reported("vllm 6758", "gemma2", weights=with_head()),
    Reported("sglang 1508", "starcoder2", _TIED, weights=with_head()),
    Reported("mlx-lm 648", "mistral3", _TIED, _TIED, weights=with_head("language_model.")),
    Reported("transformers 43429", "mistral3", _TIED, _TIED, _SILENT),
    Reported("mlx-lm 889", "qwen3_moe", _TIED),
    Reported("Qwen3-VL-Embedding 89", "qwen3", _OWN, weights=without("lm_head.weight"), refused=r"lm_head\.weight"),
    # A configuration that does not say whether it is.
    *(Reported("transformers 43429", arch, _OWN, _SILENT) for arch in ("llama", "mistral", "granite", "qwen2", "qwen3", "smollm3", "seed_oss")),
    Reported("sglang 1508", "llama", _TIED, _SILENT),
    # Weights of other parts.
    Reported("mlx-lm 946", "qwen3_5", weights=adding("vision_tower.blocks.0.mlp.fc1.weight", "vision_tower.merger.norm.weight")),
    Reported("mlx-examples 1110", "qwen3_vl", weights=adding("model.visual.blocks.8.mlp.fc1.bias")),
    Reported("mlx-vlm 1187", "mistral3", weights=adding("multi_modal_projector.linear_1.biases", "multi_modal_projector.linear_1.scales")),
    Reported("mlx-vlm 429", "gemma4", weights=adding("audio_tower.conformer.0.attention.attn.k_proj.weight")),
    Reported("mlx-vlm 73", "gemma3", weights=adding("vision_tower.vision_model.transformer.layers.1.attention.q_proj.scales")),
    Reported("omlx 2732", "qwen3_5", weights=adding("mtp.fc.weight", "mtp.layers.0.mlp.up_proj.scales")),
    Reported("omlx 2347", "qwen3_next", weights=adding("mtp.layers.0.mlp.up_proj.weight")),
    Reported("omlx 2732", "mimo", weights=adding("model.mtp_layers.0.input_proj.weight")),
    Reported("mlx-lm 1482", "deepseek_v3", weights=adding("model.layers.4.eh_proj.weight", "model.layers.4.enorm.weight", "model.layers.4.mlp.up_proj.weight")),
    Reported("sglang 32279", "llama", weights=adding("model.layers.4.mlp.up_proj.weight"), refused=r"layers\.4\.mlp"),
    Reported("vllm 13787", "qwen3", weights=adding("model.layers.0.self_attn.k_proj.k_scale", "model.layers.0.self_attn.v_scale")),
    Reported("llama.cpp 3633", "qwen3", weights=adding("model.layers.0.self_attn.rotary_emb.inv_freq")),
    Reported("llama.cpp 3633", "llama", weights=adding("model.rotary_emb.inv_freq")),
    # Packings by layer.
    Reported("mlx-lm 1214", "qwen3_5", quantized=(AFFINE4, {"layers.0.": AFFINE6}), config={"quantization": {**AFFINE4, "model.language_model.layers.0.linear_attn.in_proj_qkv": AFFINE6}}),
    Reported("mlx-vlm 1728", "mistral3", quantized=(MXFP4, {"layers.0.": AFFINE8}), config={"quantization": {**MXFP4, "model.layers.0.mlp.up_proj": AFFINE8}}),
    Reported("mlx-vlm 1703", "gpt_oss", quantized=(MXFP4, {"self_attn": AFFINE8, "embed": AFFINE8, "router": AFFINE8}), config={"quantization": MXFP4}),
    Reported("mlx-vlm 1703", "llama", quantized=(MXFP4, {"self_attn": AFFINE8}), config={"quantization": {**MXFP4, **{f"model.layers.{i}.self_attn.q_proj": {"group_size": 32, "bits": 8} for i in range(4)}}}),
    Reported("mlx-vlm 1711", "qwen3", quantized=(AFFINE4, {"layers.0.": MXFP8}), config={"quantization": AFFINE4}),
    Reported("mlx-lm 1451", "deepseek_v3", quantized=(AFFINE4, {"embed_q": AFFINE6, "unembed_out": AFFINE6}), config={"quantization": AFFINE4}),
    Reported("mlx-lm 1451", "glm4_moe_lite", quantized=(AFFINE4, {"unembed_out": AFFINE6}), config={"quantization": AFFINE4}),
    Reported("mlxcel 291", "llama", quantized=(AFFINE4, {"embed": AFFINE8}), config={"quantization": AFFINE4}),
    Reported("mlx-vlm 692", "llama", quantized=(AFFINE4, {}), config={"quantization": {}, "quantization_config": AFFINE4}),
    Reported("mlx-vlm 692", "qwen3_vl", quantized=(AFFINE4, {}), in_text={"quantization": AFFINE4}),
    Reported("mlx-lm 1154", "llama", quantized=(AFFINE4, {}), config={"quantization": AFFINE4, "quantization_config": {**AFFINE4, "quant_method": "mlx"}}),
    Reported("omlx 2001", "llama", quantized=(AFFINE4, {}), config={"quantization": {**AFFINE4, "mode": "turboquant"}}, refused="turboquant"),
    Reported("mlx-lm 1865", "llama", config={"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}, refused="compressed-tensors"),
    Reported("mlx-lm 989", "llama", config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, refused="bitsandbytes"),
    Reported("mlx-examples 1232", "llama", config={"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
    # Rotations.
    Reported("aiter 4742", "glm4_moe_lite", _BASE, {"rope_theta": ABSENT, "rope_scaling": {**_BASE, "rope_type": "default", "partial_rotary_factor": 1.0}}),
    Reported("aiter 4742", "llama", _BASE, {"rope_theta": ABSENT, "rope_scaling": {**_BASE, "rope_type": "default"}}),
    Reported("vllm 28542", "llama", _BASE, {"rope_theta": ABSENT, "rope_parameters": {**_BASE, "rope_type": "default"}, "rope_scaling": None}),
    Reported("sglang 2943", "qwen3", {"rope_scaling": {**_YARN, "original_max_position_embeddings": 2048}}, {"rope_scaling": _YARN}),
    Reported("xinfer 222", "llama", {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 2048}}, {"rope_scaling": _LLAMA3}),
    Reported("mlx-examples 909", "llama", {"rope_scaling": {**_LLAMA3, "type": "llama3", "original_max_position_embeddings": 512}}, {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 512}}),
    Reported("Qwen2.5-Omni 373", "qwen2_vl", in_text={"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]}}),
    Reported("transformers 32182", "llama", config={"rope_scaling": {"type": None, "factor": None}}),
    # Sizes that are null or left out.
    Reported("kvpress 215", "qwen2", {"head_dim": ABSENT}),
    Reported("llm-d-benchmark 426", "mixtral", {"head_dim": ABSENT}, {"head_dim": None}),
    *(Reported("vllm 14139", arch, {"head_dim": 16}, {"head_dim": None}) for arch in ("seed_oss", "ernie4_5", "qwen3", "mistral")),
    *(Reported("VTG-LLM 14", arch, {"num_key_value_heads": 4}, {"num_key_value_heads": None}) for arch in ("qwen2", "qwen3", "starcoder2", "stablelm")),
    *(Reported("optimum-habana 1861", arch, {"num_key_value_heads": 4}, {"num_key_value_heads": ABSENT}) for arch in ("llama", "granite", "phi", "olmo2")),
    Reported("Qwen3 250", "qwen2", config={"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28}),
    Reported("distributed-llama 282", "llama", config={"pad_token_id": 383, "architectures": None, "torch_dtype": "torch.bfloat16"}),
    Reported("InfiniLM 387", "llama", config={"eos_token_id": [0, 2, 2], "pad_token_id": -1}),
    # Second tranche: mirrors, merged models, and multimodal configurations.
    Reported("unsloth 8126", "qwen3_next", _BASE, {"rope_theta": ABSENT, "rope_parameters": {**_BASE, "rope_type": "default"}}),
    *(Reported("unsloth 8126", arch, _OWN, _SILENT) for arch in ("ernie4_5", "ernie4_5_moe")),
    Reported("unsloth 8126", "ernie4_5", _TIED, _SILENT),
    Reported("unsloth 7306", "lfm2", config={"block_ff_dim": ABSENT}),
    Reported("lmstudio-bug-tracker 1803", "gemma4", quantized=(MXFP4, {}), config={"quantization": MXFP4}, weights=adding("embed_vision.embedding_projection.weight", "embed_vision.embedding_projection.scales")),
    Reported("mlx-engine 282", "mistral3", quantized=(MXFP8, {}), config={"quantization": MXFP8}, weights=adding("multi_modal_projector.linear_2.weight", "multi_modal_projector.patch_merger.merging_layer.scales")),
    Reported("lmstudio-bug-tracker 1926", "qwen3_5", in_text={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}),
    Reported("vllm 18983", "qwen2_vl", config={"hidden_size": 64, "num_attention_heads": 4, "image_token_id": 301, "max_window_layers": 28, "use_sliding_window": False}, in_text={"image_token_id": None, "architectures": ["Qwen2VLForConditionalGeneration"]}),
    Reported("vllm 6692", "llama", config={"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 512, "type": "yarn"}}, refused="yarn"),
    Reported("vllm 9481", "llama", {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 512, "type": "llama3"}}, {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 512, "type": None}}),
    Reported("LlamaFactory 7848", "qwen2", _OWN, weights=without("lm_head.weight"), refused=r"lm_head\.weight"),
    Reported("lms 552", "llama", config={"model_type": ABSENT}, refused="model_type"),
    Reported("unsloth-zoo 969", "llama", weights=renaming("language_model.model.", "model."), refused="model"),
    Reported("unsloth-zoo 802", "gpt_oss", weights=renaming("mlp.router.linear.", "mlp.router."), refused="router"),
    Reported("vllm 10534", "mistral", config={"sliding_window": None, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0"}),
    Reported("textgen 6784", "llama", config={"architectures": ["LlamaForCausalLM"], "pretraining_tp": 1, "_name_or_path": "x", "unsloth_fixed": True}),
    Reported("vllm 6692", "llama", config={"eos_token_id": [300, 301, 302], "pretraining_tp": 1}),
    Reported("lmstudio-bug-tracker 1926", "qwen3_5", config={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}),
    Reported("omlx 146", "qwen3", config={"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 48}}, refused="groups of 48"),
]  # fmt: skip
