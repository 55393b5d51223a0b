"""Puts the kernels that are not attention's into a model: products, experts, recurrences.

Each is held against what it replaces; where it differs or is slower, that stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.metal_kernels import DispatchCounter, default_backend
from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.gated_delta import GatedDelta
from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul
from rvllm_local.models.choice_notes import notes_here
from rvllm_local.models.expert_products import install_expert_products
from rvllm_local.models.products import (
    QuantizedProducts,
    install_products,
    products_here,
)
from rvllm_local.models.recurrent_steps import install_gated_delta
from rvllm_local.models.routed_blocks import install_routed_blocks
from rvllm_local.options import EngineOptions

_EXPERTS_A_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "top_k_experts",
)
_USUAL_EXPERTS = 8
# Metal has mlx-lm's own kernel for prompts; elsewhere a definition takes one token a step.
_MOST_TOKENS = {"metal": 8, "cuda": None}


def install_kernels(
    model: nn.Module,
    config: Mapping[str, Any],
    dtype: mx.Dtype,
    options: EngineOptions,
    counter: DispatchCounter,
) -> None:
    """Let the model's layers take what is quicker here.

    The deterministic mode takes the kernels wherever they are right. `dtype` is that of
    activations whose weights do not tell it.
    """
    backend = default_backend()
    if backend == "none":
        return
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    products = QuantizedProducts(
        products_here(counter),
        always=options.deterministic,
        most_rows=options.max_rows,
        notes=notes_here(cache_dir),
    )
    install_products(model, products, dtype)
    matrices = None
    if backend == "metal":
        matrices = GatheredMatmul(counter=counter, by_matrices=True)
    install_expert_products(
        model,
        GatheredMatmul(counter=counter),
        each=experts_a_token(config),
        always=options.deterministic,
        matrices=matrices,
        most_rows=options.max_rows,
    )
    install_routed_blocks(model, ExpertRoutes(counter=counter), dtype)
    step = GatedDelta(counter=counter)
    install_gated_delta(model, step, most_tokens=_MOST_TOKENS[backend])


def experts_a_token(config: Mapping[str, Any]) -> int:
    """How many experts a token goes through, or a usual number."""
    for part in (config, config.get("text_config")):
        for name in _EXPERTS_A_TOKEN:
            count = part.get(name) if isinstance(part, Mapping) else None
            if isinstance(count, int) and count > 0:
                return count
    return _USUAL_EXPERTS
