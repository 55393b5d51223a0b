"""The base of all kernels of one attention shape.

It holds their texts, checks the arena's inputs, and counts launches.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from rvllm_local.metal_kernels.arguments import require
from rvllm_local.metal_kernels.config import FENCE_SIZE, KernelConfig, text_language
from rvllm_local.metal_kernels.decode import Tuning, default_tuning
from rvllm_local.metal_kernels.latent import latent_tuning
from rvllm_local.metal_kernels.launch import (
    Dispatch,
    DispatchCounter,
    KernelText,
    Launcher,
    MLXLauncher,
    kernel_text,
)

Defines = dict[str, object]


class KernelLaunches:
    """Makes each text once and counts each launch. Never reads an array on the host."""

    def __init__(
        self,
        config: KernelConfig,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.config = config
        self.backend = text_language(backend)
        if counter is None:
            counter = DispatchCounter()
        if tuning is None and config.is_uneven:
            tuning = latent_tuning(config, self.backend)
        elif tuning is None:
            tuning = default_tuning(config, self.backend)
        if launcher is None:
            launcher = MLXLauncher()
        self.counter = counter
        self.tuning = tuning
        self._launcher = launcher
        self._texts: dict[tuple[object, ...], KernelText] = {}

    @staticmethod
    def first_fence() -> mx.array:
        """The fence that starts a chain of steps: int32 `[8]`."""
        return mx.zeros((FENCE_SIZE,), dtype=mx.int32)

    @staticmethod
    def layer_index(layer: int) -> mx.array:
        """A layer's number in the arena as the kernels take it: int32 `[8]`."""
        return mx.full((FENCE_SIZE,), layer, dtype=mx.int32)

    def _arena_inputs(
        self,
        arena: mx.array,
        scales: mx.array | None,
        fence: mx.array,
    ) -> dict[str, mx.array]:
        """The checked arena and, for int8 alone, its scales: a bound buffer costs time."""
        c = self.config
        require("arena", arena, c.arena_shape(arena.shape[0]), c.kv_dtype)
        require("fence", fence, (FENCE_SIZE,), mx.int32)
        if not c.quantized:
            return {"arena": arena}
        if scales is None:
            raise ValueError(
                "an int8 arena needs its scales "
                "[blocks, layers, 2, kv_heads, 32] in float32"
            )
        require("scales", scales, c.scales_shape(arena.shape[0]), mx.float32)
        return {"arena": arena, "scales": scales}

    def _layer_inputs(
        self,
        arena: mx.array,
        scales: mx.array | None,
        layer: mx.array,
        fence: mx.array,
    ) -> dict[str, mx.array]:
        """`_arena_inputs` of a kernel that works on one layer."""
        require("layer", layer, (FENCE_SIZE,), mx.int32)
        return self._arena_inputs(arena, scales, fence)

    def _text(
        self,
        kind: str,
        defines: Mapping[str, object],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parts: tuple[str, ...] = (),
        body: str = "",
    ) -> KernelText:
        key = (kind, *defines.items())
        text = self._texts.get(key)
        if text is None:
            macros = self.config.defines(self.backend)
            macros.update(defines)
            text = kernel_text(
                kind,
                body or f"{kind}.metal",
                self.backend,
                macros,
                inputs,
                outputs,
                parts,
            )
            self._texts[key] = text
        return text

    def _run(self, dispatch: Dispatch) -> tuple[mx.array, ...]:
        self.counter.add({dispatch.kernel.kind: 1})
        return tuple(self._launcher(dispatch))
