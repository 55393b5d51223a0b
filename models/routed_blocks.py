"""Blocks of experts whose routing is a softmax choose and add up by the project's kernels.

mlx-lm's definitions launch eight operations around the products of a few rows; here
they are two. Each kind of block is held against its definition first.
"""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.quantized_matmul import MAX_ROWS
from rvllm_local.models.replaced_calls import replace_call

logger = logging.getLogger(__name__)

# Whether the shares of a row's experts add up to 1, where the block does not say.
_OF_CHOSEN = {
    "MixtralSparseMoeBlock": True,
    "OlmoeSparseMoeBlock": False,
    "Qwen2MoeSparseMoeBlock": False,
    "Qwen3MoeSparseMoeBlock": False,
    "Qwen3NextSparseMoeBlock": False,
}
_TRIED_ROWS = 3
# Of the largest result.
_TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 8e-2}


def install_routed_blocks(
    model: nn.Module, routes: ExpertRoutes, dtype: mx.Dtype
) -> int:
    """Have the model's blocks route few rows by the kernels; returns how many do.

    `dtype` is that of activations.
    """
    checked: dict[tuple[object, ...], str | None] = {}
    installed = 0
    for module in list(model.modules()):
        if type(module).__name__ not in _OF_CHOSEN:
            continue
        block = _Block(module, routes)
        if block.kind not in checked:
            why = block.fault(dtype)
            checked[block.kind] = why
            logger.info("experts are chosen by %s", why or "the kernel")
        if checked[block.kind] is None:
            block.install()
            installed += 1
    return installed


class _FixedGate(nn.Module):  # type: ignore[misc]
    """Stands in for a block's gate: logits that leave no choice to rounding."""

    def __init__(self, logits: mx.array) -> None:
        super().__init__()
        self._logits = logits

    def __call__(self, x: mx.array) -> mx.array:
        return self._logits.reshape(*x.shape[:-1], -1)


class _Block:
    """One block as the kernels compute it."""

    def __init__(self, module: Any, routes: ExpertRoutes) -> None:
        self._module = module
        self._routes = routes
        kind = type(module)
        # A model that was served before has a replaced call already.
        self._definition = getattr(kind.__call__, "definition", kind.__call__)
        each = getattr(module, "top_k", None) or module.num_experts_per_tok
        self._each = int(each)
        usual = _OF_CHOSEN[kind.__name__]
        self._of_chosen = bool(getattr(module, "norm_topk_prob", usual))

    @property
    def kind(self) -> tuple[object, ...]:
        """What the check depends on."""
        module = self._module
        sizes = (self._width, module.num_experts, self._each, self._of_chosen)
        return (type(module).__name__, *sizes)

    @property
    def _width(self) -> int:
        return int(self._module.switch_mlp.up_proj.input_dims)

    def install(self) -> None:
        """Let the module route by the kernels."""

        def call(module: nn.Module, x: mx.array) -> mx.array:
            is_shared = getattr(module, "sharding_group", None) is not None
            if is_shared or x.size // x.shape[-1] > MAX_ROWS:
                output: mx.array = self._definition(module, x)
                return output
            return self.routed(x)

        call.definition = self._definition  # type: ignore[attr-defined]
        replace_call(self._module, call)

    def routed(self, x: mx.array) -> mx.array:
        """What the block gives for `x` `[..., width]`."""
        module, width = self._module, x.shape[-1]
        logits = module.gate(x)
        experts, shares = self._routes.choose(
            logits.reshape(-1, logits.shape[-1]), self._each, of_chosen=self._of_chosen
        )
        rows = x.reshape(-1, width)
        parts = module.switch_mlp(rows, experts.reshape(-1, self._each))
        out = self._routes.weigh(parts, shares).reshape(x.shape)
        if "shared_expert" in module:
            shared = module.shared_expert(x)
            out = out + mx.sigmoid(module.shared_expert_gate(x)) * shared
        return out

    def fault(self, dtype: mx.Dtype) -> str | None:
        """What speaks against the kernels; None if nothing does."""
        module = self._module
        random = np.random.default_rng(0)
        count = module.num_experts
        steps = [random.permutation(count) for _ in range(_TRIED_ROWS)]
        logits = mx.array(np.stack(steps) / 16).astype(dtype)
        shape = (_TRIED_ROWS, 1, self._width)
        x = mx.array(random.standard_normal(shape, dtype=np.float32)).astype(dtype)
        gate = module.gate
        module.gate = _FixedGate(logits)
        try:
            given = self.routed(x).astype(mx.float32)
            expected = self._definition(module, x).astype(mx.float32)
            largest = mx.maximum(mx.abs(expected).max(), 1e-6)
            distance = float(np.array(mx.abs(given - expected).max() / largest))
        except (RuntimeError, ValueError, UnsupportedModelError) as error:
            return f"the definition: {error}"
        finally:
            module.gate = gate
        if distance <= _TOLERANCE[dtype]:  # false for NaN
            return None
        return f"the definition: the kernel's blocks differ by {distance:.1e}"
