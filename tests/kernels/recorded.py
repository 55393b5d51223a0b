"""What the kernels launch, kept instead of run: every text of one language."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.metal_kernels import (
    AddNorm,
    KernelConfig,
    KernelSet,
    NewTokens,
    QuantizedMatmul,
)
from rvllm_local.metal_kernels.expert_routes import ExpertRoutes
from rvllm_local.metal_kernels.gated_delta import GatedDelta
from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.metal_kernels.proof import (
    checks,
    delta,
    gathered,
    latent,
    quantized,
    routes,
)
from rvllm_local.metal_kernels.proof.oracle import Case
from rvllm_local.metal_kernels.proof.variants import VARIANTS


class Recorder:
    """A launcher that keeps each dispatch and gives zeros."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.dispatches: dict[str, Dispatch] = {}

    def __call__(self, dispatch: Dispatch) -> list[mx.array]:
        self.dispatches[dispatch.kernel.name] = dispatch
        outputs = zip(dispatch.shapes, dispatch.dtypes, strict=True)
        return [mx.zeros(shape, dtype=dtype) for shape, dtype in outputs]

    def attention(self) -> None:
        """Attention in every variant."""
        for variant in VARIANTS:
            kernels = self.kernels(variant.config)
            case = Case(variant.config, variant.contexts, variant.query_len)
            sinks = mx.zeros((variant.num_heads,)) if variant.sinks else None
            shape = (len(variant.contexts), variant.kv_heads, variant.query_len)
            new = mx.zeros((*shape, variant.head_dim), dtype=variant.dtype)
            checks.decode(kernels, case, variant, sinks, NewTokens(new, new))

    def latents(self) -> None:
        """Attention over latents in every variant."""
        for variant in latent.LATENTS:
            kernels = self.kernels(variant.config)
            case = latent.LatentCase(variant)
            case.decode(kernels, latent.new_tokens(case))

    def blocks(self, dtype: mx.Dtype, kv_dtype: mx.Dtype) -> None:
        """What reads, writes and moves blocks, and what stands around attention."""
        config = KernelConfig(64, 2, 1, 1, dtype, kv_dtype)
        kernels = self.kernels(config)
        case = Case(config, (40,))
        fence, layer = kernels.first_fence(), kernels.layer_index(0)
        new = mx.zeros((1, 1, 1, 64), dtype=dtype)
        arena, scales = case.arena, case.scales
        kernels.kv_write(arena, scales, new, new, case.descriptor, layer, fence)
        kernels.kv_gather(arena, scales, case.descriptor, layer, fence, 40)
        kernels.kv_copy(arena, scales, mx.array([[1, 2]], dtype=mx.int32), fence)
        blocks = mx.zeros((8,), dtype=mx.int32)
        saved = kernels.kv_save(arena, scales, blocks, fence, 1)
        kernels.kv_load(arena, scales, blocks, saved, fence)
        kernels.rope_table(case.descriptor, mx.ones(2), 1)
        AddNorm(launcher=self, backend=self.backend)(
            mx.zeros((1, 64), dtype=dtype),
            mx.zeros((1, 64), dtype=dtype),
            mx.zeros((64,), dtype=dtype),
            1e-5,
        )

    def products(self, rows: int, matrix_rows: int | None = None) -> None:
        """Products of so many rows with weights of every format."""
        multiply = QuantizedMatmul(
            launcher=self, backend=self.backend, matrix_rows=matrix_rows
        )
        for product in quantized.PRODUCTS:
            weight = quantized.packed_weight(product)
            multiply(quantized.random_rows(product, rows), weight)

    def experts(self, *, by_matrices: bool = False) -> None:
        """Products of few and of many pairs with experts."""
        multiply = GatheredMatmul(
            launcher=self, backend=self.backend, by_matrices=by_matrices
        )
        for case in gathered.EXPERTS:
            weights = gathered.expert_weights(case)
            for rows in (1, 9):
                experts = gathered.random_experts(case, rows)
                x = quantized.random_rows(case.product, rows)
                multiply(x, weights, experts)
                if multiply.can_gate(weights, weights):
                    multiply.gated(x, weights, weights, experts)

    def routes(self) -> None:
        """The choice of experts and their weighted sum."""
        kernels = ExpertRoutes(launcher=self, backend=self.backend)
        for case in routes.ROUTES:
            for rows in (1, 9):
                logits = routes.random_logits(case, rows)
                _, shares = kernels.choose(logits, case.each, of_chosen=case.of_chosen)
                parts = mx.zeros((rows, case.each, case.width), dtype=case.dtype)
                kernels.weigh(parts, shares)

    def recurrent_steps(self) -> None:
        """Gated delta nets of every shape."""
        step = GatedDelta(launcher=self, backend=self.backend)
        for net in delta.NETS:
            case = delta.Case(net.shape, 1, 1)
            step(net.shape, case.weights, case.inputs, case.conv, case.state)

    def kernels(self, config: KernelConfig) -> KernelSet:
        return KernelSet(config, launcher=self, backend=self.backend)
