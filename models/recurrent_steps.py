"""Layers of gated delta nets take one launch for what lies between their projections.

The definitions compute as before for every cache but the engine's own. Each kind of layer
is held against its definition at load; one that differs keeps the definition.
"""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.seam import is_of_engine, state_cache
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.layout import StateSlot
from rvllm_local.metal_kernels.gated_delta import (
    DeltaInputs,
    DeltaShape,
    DeltaWeights,
    GatedDelta,
    delta_refusal,
)
from rvllm_local.models.replaced_calls import replace_call

logger = logging.getLogger(__name__)

# By the definitions' classes: a projection that they alone have, and whether a token's
# projection has each key head's parts together.
_LAYERS = {
    "GatedDeltaNet": ("in_proj_qkv", False),
    "Qwen3NextGatedDeltaNet": ("in_proj_qkvz", True),
}
_CHECKED_ROWS = 2
# Of the largest result: both round several times.
_TOLERANCE = {
    mx.float32: 1e-4,
    mx.float16: 1e-2,
    mx.bfloat16: 6e-2,
}


def install_gated_delta(
    model: nn.Module,
    step: GatedDelta,
    *,
    most_tokens: int | None = None,
) -> int:
    """Let the model's layers take `step` under the engine's caches; returns how many do.

    Calls of more than `most_tokens` tokens a row go to the definition. None: none does.
    """
    layers = 0
    refused: dict[DeltaShape, str | None] = {}
    for module in model.modules():
        name, by_key_head = _LAYERS.get(type(module).__name__, ("", False))
        if not name or name not in module:
            continue
        shape = _shape_of(module, by_key_head=by_key_head)
        layer = _Layer(module, shape, step, most_tokens)
        if shape not in refused:
            refused[shape] = layer.fault()
            if refused[shape] is not None:
                logger.info("MLX computes recurrent layers: %s", refused[shape])
        if refused[shape] is None:
            layer.install()
            layers += 1
    return layers


class _Layer:
    """One layer's numbers as the launch takes them, and the call that takes it."""

    def __init__(
        self,
        module: Any,
        shape: DeltaShape,
        step: GatedDelta,
        most_tokens: int | None,
    ) -> None:
        self._module = module
        self._shape = shape
        self._step = step
        self._most_tokens = most_tokens
        kind = type(module)
        # A model that was served before has a replaced call already.
        self._definition = getattr(kind.__call__, "definition", kind.__call__)
        self._weights = DeltaWeights(
            taps=mx.contiguous(module.conv1d.weight.squeeze(-1)),
            rates=mx.exp(module.A_log.astype(mx.float32)),
            shift=module.dt_bias.astype(shape.dtype),
            norm=module.norm.weight,
        )
        mx.eval(self._weights.taps, self._weights.rates, self._weights.shift)

    def install(self) -> None:
        """Let the module compute by the launch where that serves."""

        def call(
            module: nn.Module,
            inputs: mx.array,
            mask: mx.array | None = None,
            cache: Any = None,
        ) -> mx.array:
            if mask is None and self._serves(inputs, cache):
                return self._stepped(inputs, cache)
            output: mx.array = self._definition(module, inputs, mask, cache)
            return output

        call.definition = self._definition  # type: ignore[attr-defined]
        replace_call(self._module, call)

    def _serves(self, inputs: mx.array, cache: Any) -> bool:
        if not is_of_engine(cache):
            return False
        return self._most_tokens is None or inputs.shape[1] <= self._most_tokens

    def _stepped(self, inputs: mx.array, cache: Any) -> mx.array:
        conv, state = cache[0], cache[1]
        if conv is None or state is None:
            conv, state = self._first_states(len(inputs))
        projected = self._projected(inputs)
        out, conv, state = self._step(
            self._shape, self._weights, projected, conv, state
        )
        cache[0] = conv
        cache[1] = state
        cache.advance(inputs.shape[1])
        output: mx.array = self._module.out_proj(out)
        return output

    def _first_states(self, rows: int) -> tuple[mx.array, mx.array]:
        """What a sequence begins with."""
        shape = self._shape
        conv = mx.zeros((rows, shape.taps - 1, shape.channels), dtype=shape.dtype)
        size = (rows, shape.value_heads, shape.value_dim, shape.key_dim)
        return conv, mx.zeros(size, dtype=mx.float32)

    def _projected(self, x: mx.array) -> DeltaInputs:
        module = self._module
        if self._shape.by_key_head:
            mixed = module.in_proj_qkvz(x)
            gates = module.in_proj_ba(x)
            return DeltaInputs(mixed, mixed, gates, gates)
        return DeltaInputs(
            module.in_proj_qkv(x),
            module.in_proj_z(x),
            module.in_proj_a(x),
            module.in_proj_b(x),
        )

    def fault(self) -> str | None:
        """Why the launch does not serve this layer; None if it does."""
        why = delta_refusal(self._shape)
        if why is not None:
            return why
        try:
            return self._difference()
        except (RuntimeError, ValueError, UnsupportedModelError) as error:
            return f"the kernel fails: {error}"

    def _difference(self) -> str | None:
        """What is wrong with the launch beside the definition; None if nothing is."""
        shape = self._shape
        state = (shape.value_heads, shape.value_dim, shape.key_dim)
        conv = _random(shape.taps - 1, shape.channels).astype(shape.dtype)
        start = (conv, _random(*state))
        x = _random(1, self._module.hidden_size).astype(shape.dtype)
        caches = [state_cache(StateSlot(0, 2), start) for _ in range(2)]
        given = self._stepped(x, caches[0])
        expected = self._definition(self._module, x, None, caches[1])
        pairs = [(given, expected)]
        pairs += zip(caches[0].cache, caches[1].cache, strict=True)
        for ours, theirs in pairs:
            distance = _relative(ours, theirs)
            if not distance <= _TOLERANCE[shape.dtype]:  # true for NaN
                return f"the kernel differs from the definition by {distance:.1e}"
        return None


def _shape_of(module: Any, *, by_key_head: bool) -> DeltaShape:
    return DeltaShape(
        key_heads=module.num_k_heads,
        value_heads=module.num_v_heads,
        key_dim=module.head_k_dim,
        value_dim=module.head_v_dim,
        taps=module.conv_kernel_size,
        dtype=module.conv1d.weight.dtype,
        norm_eps=module.norm.eps,
        by_key_head=by_key_head,
    )


def _random(*size: int) -> mx.array:
    """The same numbers at each start, for some rows."""
    random = np.random.default_rng(11)
    values = random.standard_normal((_CHECKED_ROWS, *size), dtype=np.float32)
    return mx.array(values)


def _relative(given: mx.array, expected: mx.array) -> float:
    """The largest difference, as a share of the largest expected number."""
    theirs = expected.astype(mx.float32)
    difference = mx.abs(given.astype(mx.float32) - theirs).max()
    largest = mx.maximum(mx.abs(theirs).max(), 1e-6)
    return float(np.array(difference / largest))
