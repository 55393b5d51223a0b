"""Latents for definitions that keep the keys and values which they make from them.

mlx-lm's deepseek_v2, minicpm3 and youtu_llm expand each latent before they keep it. The
stand-in for their attention keeps latents, where the layer's cache does. The projection
that expands them is absorbed into the query and the output of a single token. Any other
cache goes to mlx-lm's own call, untouched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.latent import LATENT_MARK
from rvllm_local.attention.stand_in import project_heads
from rvllm_local.errors import UnsupportedModelError

_EXPANDING = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "update_and_fetch")


def keep_latents(model: nn.Module) -> None:
    """Have layers that expand their latents keep them as they are; safe to call again.

    The model's layout (see `probe`) then has groups of latents.
    """
    for module in model.modules():
        if not _expands(type(module)):
            continue
        projection = module.kv_b_proj
        is_known = isinstance(projection, (nn.Linear, nn.QuantizedLinear))
        if is_known and "bias" not in projection:
            setattr(module, LATENT_MARK, True)
            _install(type(module))


def expanded_sizes(
    model: nn.Module,
) -> dict[tuple[int, int, int], tuple[int, int, int]]:
    """What layers that are to keep latents keep in mlx-lm's caches, and their latents.

    Heads and sizes of keys and values, and those of latents (see `latent_sizes`).
    """
    sizes = {}
    for module in model.modules():
        if getattr(module, LATENT_MARK, False) is not True:
            continue
        key_dim = module.qk_nope_head_dim + module.qk_rope_head_dim
        expanded = module.num_heads, key_dim, module.v_head_dim
        sizes[expanded] = 1, module.kv_lora_rank, module.qk_rope_head_dim
    return sizes


def _expands(cls: type) -> bool:
    call = inspect.unwrap(cls.__call__)
    code = getattr(call, "__code__", None)
    if code is None:
        return False
    return set(_EXPANDING).issubset(code.co_names)


def _install(attention: type[nn.Module]) -> None:
    if hasattr(attention.__call__, "original"):
        return
    attention.__call__ = _latent_call(attention.__call__)


def _latent_call(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    @functools.wraps(original)
    def call(layer: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        if not getattr(cache, LATENT_MARK, False):
            return original(layer, x, mask=mask, cache=cache)
        attended = _attend(layer, x, mask, cache)
        return project_heads(layer, attended)

    call.original = original  # type: ignore[attr-defined]
    return call


def _attend(layer: Any, x: mx.array, mask: Any, cache: Any) -> mx.array:
    """What the heads attended to: `[rows, heads, tokens, v_head_dim]`."""
    rows, tokens = x.shape[:2]
    queries = _queries(layer, x)
    queries = queries.reshape(rows, tokens, layer.num_heads, -1)
    queries = queries.transpose(0, 2, 1, 3)
    plain, rotated = mx.split(queries, [layer.qk_nope_head_dim], axis=-1)
    compressed = layer.kv_a_proj_with_mqa(x)
    latents, turned = mx.split(compressed, [layer.kv_lora_rank], axis=-1)
    latents = layer.kv_a_layernorm(latents)
    rotated = layer.rope(rotated, cache.offset)
    turned = layer.rope(turned[:, None], cache.offset)
    latents, turned = cache.update_and_fetch(latents[:, None], turned)
    if tokens > 1:
        return _attend_expanded(layer, plain, rotated, latents, turned, mask)
    scale = _scale(layer)
    rotated = rotated * scale
    absorbed = multiply_by_head(layer, plain, to_latent=True)
    if cache.latent:
        attended = cache.attend(absorbed, AttentionCall(scale), rotated)
    else:
        bias = _hidden(rotated @ turned.swapaxes(-1, -2), mask)
        attended = mx.fast.scaled_dot_product_attention(
            absorbed,
            latents,
            latents,
            scale=scale,
            mask=bias,
        )
    return multiply_by_head(layer, attended, to_latent=False)


def _hidden(bias: mx.array, mask: Any) -> mx.array:
    """`bias` with the lowest number where `mask` hides a token."""
    if not isinstance(mask, mx.array):
        return bias
    lowest = mx.finfo(bias.dtype).min
    return mx.where(mask, bias, mx.array(lowest, bias.dtype))


def _queries(layer: Any, x: mx.array) -> mx.array:
    if "q_proj" in layer:
        queries: mx.array = layer.q_proj(x)
        return queries
    compressed = layer.q_a_layernorm(layer.q_a_proj(x))
    expanded: mx.array = layer.q_b_proj(compressed)
    return expanded


def _scale(layer: Any) -> float:
    """MiniCPM 3 has another name for it."""
    scale = getattr(layer, "scale", None)
    if scale is None:
        scale = layer.softmax_scale
    return float(scale)


def _attend_expanded(
    layer: Any,
    plain: mx.array,
    rotated: mx.array,
    latents: mx.array,
    turned: mx.array,
    mask: Any,
) -> mx.array:
    """Attention of a prompt's chunk, to keys and values of all heads."""
    rows, _, width, _ = latents.shape
    heads = layer.num_heads
    both = layer.kv_b_proj(latents[:, 0]).reshape(rows, width, heads, -1)
    both = both.transpose(0, 2, 1, 3)
    keys, values = mx.split(both, [layer.qk_nope_head_dim], axis=-1)
    shared = mx.broadcast_to(turned, (rows, heads, width, turned.shape[-1]))
    return mx.fast.scaled_dot_product_attention(
        mx.concatenate([plain, rotated], axis=-1),
        mx.concatenate([keys, shared], axis=-1),
        values,
        scale=_scale(layer),
        mask=mask,
    )


def multiply_by_head(layer: Any, x: mx.array, *, to_latent: bool) -> mx.array:
    """`x` `[rows, heads, 1, dim]` times each head's part of the projection.

    The keys' part takes a query to the latents' size, the values' part a weighted
    latent to a head's.
    """
    projection = layer.kv_b_proj
    split = layer.qk_nope_head_dim
    part = slice(None, split) if to_latent else slice(split, None)

    def of_heads(array: mx.array) -> mx.array:
        by_head = array.reshape(layer.num_heads, -1, array.shape[-1])
        return by_head[:, part]

    if isinstance(projection, nn.QuantizedLinear):
        biases = projection.get("biases")
        return mx.quantized_matmul(
            x,
            of_heads(projection.weight),
            scales=of_heads(projection.scales),
            biases=None if biases is None else of_heads(biases),
            transpose=not to_latent,
            group_size=projection.group_size,
            bits=projection.bits,
            mode=projection.mode,
        )
    if not isinstance(projection, nn.Linear):
        raise UnsupportedModelError(
            f"a projection of {type(projection).__name__} cannot be absorbed"
        )
    weight = of_heads(projection.weight)
    if to_latent:
        return x @ weight
    return x @ weight.swapaxes(-1, -2)
