"""Which architectures of llama.cpp are read, and what their tensors are called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.gguf.reader import GGUFFile

TOP = {
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
_NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORM_IS_BEHIND_ATTENTION = {"post_attention_norm": "post_attention_layernorm"}
_PLAIN_MLP = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_GLM4_MOE = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "exp_probs_b": "mlp.gate.e_score_correction_bias",
}
_LATENTS = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_k_b": "self_attn.embed_q",
    "attn_v_b": "self_attn.unembed_out",
}
_HUNYUAN = {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
}
_LFM2 = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_LFM2_MLP = {
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
_LFM2_EXPERTS = {
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.gate",
    "ffn_gate_exps": "feed_forward.switch_mlp.gate_proj",
    "ffn_up_exps": "feed_forward.switch_mlp.up_proj",
    "ffn_down_exps": "feed_forward.switch_mlp.down_proj",
    "exp_probs_b": "feed_forward.expert_bias",
}
# The last norm has had two names.
_LFM2_TOP = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",
    "output_norm": "model.embedding_norm",
}
_GEMMA4 = {
    "layer_output_scale": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_up_exps": "experts.switch_glu.gate_up_proj",
    "ffn_gate_exps": "experts.switch_glu.gate_proj",
    "ffn_up_exps": "experts.switch_glu.up_proj",
    "ffn_down_exps": "experts.switch_glu.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
}
_GEMMA4_TOP = {
    **TOP,
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_GRANITE_MOE = {
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    "ffn_gate_exps": "block_sparse_moe.switch_mlp.gate_proj",
    "ffn_up_exps": "block_sparse_moe.switch_mlp.up_proj",
    "ffn_down_exps": "block_sparse_moe.switch_mlp.down_proj",
}
_MAMBA2 = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_dt": "mamba.dt_bias",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}
_SHARED_MLP = {
    "ffn_gate_shexp": "shared_mlp.gate_proj",
    "ffn_up_shexp": "shared_mlp.up_proj",
    "ffn_down_shexp": "shared_mlp.output_linear",
}
_SHARED_MLP_IN_ONE = {
    "shared_mlp.input_linear": ("shared_mlp.gate_proj", "shared_mlp.up_proj")
}
_GRANITE_SCALES = frozenset(
    {"attention.scale", "embedding_scale", "logit_scale", "residual_scale"}
)
_DELTA_NET = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one of llama.cpp's architectures maps to mlx-lm's `model_type`.

    `permuted`: rows of queries and keys are in llama.cpp's order for its interleaved rotation. `norm_shift`: what the
    converter added to the weights of norms. `always_tied`: the family has no output matrix of its own.
    `prefix` stands before every name in mlx-lm's definition. With `fills_biases` each
    layer may have biases or not, and the definition has all of them or none. With
    `has_layer_norms`, the key of what keeps norms from zero is another one. `scales` are
    keys that the family reads and most families do not know. With `layers_differ`, keys
    may have another value for each layer. With `shares_keys`, the last layers take the
    keys and values of earlier ones. `joined` are matrices of the definition that the
    file has in two parts, by their names in a layer. With `has_latents` the sizes of keys
    and values are those of latents.
    """

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    permuted: bool = False
    norm_shift: float = 0.0
    always_tied: bool = False
    has_experts: bool = False
    prefix: str = ""
    fills_biases: bool = False
    has_layer_norms: bool = False
    scales: frozenset[str] = frozenset()
    top: Mapping[str, str] = field(default_factory=lambda: TOP)
    layers_differ: bool = False
    shares_keys: bool = False
    has_latents: bool = False
    joined: Mapping[str, tuple[str, str]] = field(default_factory=dict)


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
    # Of models that see, the part that writes.
    "qwen2vl": Architecture("qwen2"),
    "qwen3vl": Architecture("qwen3", {**_LAYER, **_HEAD_NORMS}),
    "qwen3vlmoe": Architecture(
        "qwen3_moe", {**_LAYER, **_HEAD_NORMS, **_EXPERTS}, has_experts=True
    ),
    "granite": Architecture(
        "granite",
        permuted=True,
        fills_biases=True,
        scales=_GRANITE_SCALES,
    ),
    "granitemoe": Architecture(
        "granitemoe",
        {**_LAYER, **_GRANITE_MOE},
        permuted=True,
        has_experts=True,
        scales=_GRANITE_SCALES,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        {**_LAYER, **_MAMBA2, **_GRANITE_MOE, **_SHARED_MLP},
        permuted=True,
        has_experts=True,
        scales=_GRANITE_SCALES,
        layers_differ=True,
        joined=_SHARED_MLP_IN_ONE,
    ),
    "mistral3": Architecture("llama", permuted=True, fills_biases=True),
    "lfm2": Architecture(
        "lfm2",
        {**_LAYER, **_LFM2, **_LFM2_MLP},
        always_tied=True,
        top=_LFM2_TOP,
        layers_differ=True,
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        {**_LAYER, **_LFM2, **_LFM2_EXPERTS},
        always_tied=True,
        has_experts=True,
        top=_LFM2_TOP,
        layers_differ=True,
    ),
    "gemma4": Architecture(
        "gemma4_text",
        {**_LAYER, **_FOUR_NORMS, **_HEAD_NORMS, **_GEMMA4},
        has_experts=True,
        top=_GEMMA4_TOP,
        layers_differ=True,
        shares_keys=True,
    ),
    "smollm3": Architecture("smollm3", permuted=True, fills_biases=True),
    "ernie4_5": Architecture("ernie4_5"),
    "seed_oss": Architecture("seed_oss", {**_LAYER, **_NORM_IS_BEHIND_ATTENTION}),
    "olmo2": Architecture("olmo2", {**_LAYER, **_HEAD_NORMS, **_NORMS_BEHIND}),
    "exaone4": Architecture("exaone4", {**_LAYER, **_HEAD_NORMS, **_NORMS_BEHIND}),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", {**_LAYER, **_HUNYUAN}),
    "starcoder2": Architecture(
        "starcoder2", {**_LAYER, **_PLAIN_MLP}, has_layer_norms=True
    ),
    "command-r": Architecture(
        "cohere",
        {**_LAYER, **_HEAD_NORMS},
        always_tied=True,
        has_layer_norms=True,
        scales=frozenset({"logit_scale"}),
    ),
    "cohere2": Architecture(
        "cohere2",
        always_tied=True,
        has_layer_norms=True,
        scales=frozenset({"logit_scale"}),
    ),
    "glm4moe": Architecture(
        "glm4_moe",
        {
            **_LAYER,
            **_HEAD_NORMS,
            **_EXPERTS,
            **_NORM_IS_BEHIND_ATTENTION,
            **_GLM4_MOE,
        },
        has_experts=True,
        scales=frozenset({"expert_weights_scale", "nextn_predict_layers"}),
    ),
    "deepseek2": Architecture(
        "glm4_moe_lite",
        {**_LAYER, **_LATENTS, **_EXPERTS, **_GLM4_MOE},
        has_experts=True,
        has_latents=True,
        scales=frozenset(
            {"expert_group_count", "expert_weights_scale", "nextn_predict_layers"}
        ),
    ),
    "qwen35": Architecture(
        "qwen3_5",
        {**_LAYER, **_HEAD_NORMS, **_NORM_IS_BEHIND_ATTENTION, **_DELTA_NET},
        prefix="language_model.",
        scales=frozenset({"nextn_predict_layers"}),
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe",
        {
            **_LAYER,
            **_HEAD_NORMS,
            **_NORM_IS_BEHIND_ATTENTION,
            **_DELTA_NET,
            **_EXPERTS,
            **_SHARED_EXPERT,
        },
        prefix="language_model.",
        has_experts=True,
        scales=frozenset({"nextn_predict_layers"}),
    ),
}


# Mistral Small 3 is a Llama by its keys; Ministral 3 says how attention cools.
_MINISTRAL_ARCHITECTURE = Architecture("ministral3", permuted=True)
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
    if name == "olmo2" and file.metadata.get("olmo2.attention.sliding_window"):
        return replace(ARCHITECTURES[name], model_type="olmo3")
    if name == "mistral3" and file.metadata.get("mistral3.attention.temperature_scale"):
        return _MINISTRAL_ARCHITECTURE
    if name == "llama" and file.metadata.get("llama.expert_count"):
        return _MIXTRAL_ARCHITECTURE
    return ARCHITECTURES[name]
