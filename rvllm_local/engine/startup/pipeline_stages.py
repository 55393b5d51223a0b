"""Plans a pipeline: the layers of each rank, and blocks that all ranks can have alike.

Block tables are rank 0's and hold on all ranks. So each must have the same groups of
layers, in the same order, with as many blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mlx import nn

from rvllm_local.attention.absorbed import keep_latents
from rvllm_local.attention.probe import probe_layout
from rvllm_local.engine.startup.arena_sizes import arena_blocks
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.layout import KVLayout
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.describe import ModelDescription, outline
from rvllm_local.models.sharding import parameter_bytes
from rvllm_local.models.stages import take_stage
from rvllm_local.options import EngineOptions


@dataclass(frozen=True, slots=True)
class Stage:
    """One rank's layers: look at the shapes of `module`, and what they keep."""

    module: nn.Module
    layout: KVLayout
    weights_bytes: int

    def describe(self, model: ModelDescription) -> ModelDescription:
        """The model as this rank has it."""
        return dataclasses.replace(
            model,
            module=self.module,
            weights_bytes=self.weights_bytes,
            packed_bytes=None,
        )


def plan_stages(model: ModelDescription, options: EngineOptions) -> list[Stage]:
    """What each rank has. Raises `UnsupportedModelError` for a model that has no pipeline
    of so many ranks.
    """
    stages = _stages(model, options, options.ranks)
    if _are_alike(stages):
        return stages
    fitting = ["1"]
    for ranks in range(2, options.ranks):
        if _are_alike(_stages(model, options, ranks)):
            fitting.append(str(ranks))
    family = model.config.get("model_type")
    raise UnsupportedModelError(
        f"{family} cannot be a pipeline of {options.ranks} ranks: some would have other "
        f"kinds of layers than others; so many ranks would fit: {', '.join(fitting)}"
    )


def common_blocks(
    stages: Sequence[Stage], options: EngineOptions, context: int
) -> tuple[int, ...]:
    """Blocks for each group's arena that fit the KV budget of every rank."""
    by_stage = [arena_blocks(stage.layout, options, context) for stage in stages]
    return tuple(min(counts) for counts in zip(*by_stage, strict=True))


def _stages(model: ModelDescription, options: EngineOptions, ranks: int) -> list[Stage]:
    whole = parameter_bytes(model.module)
    stages = []
    for rank in range(ranks):
        module = outline(model.config)
        take_stage(module, model.config, ranks, rank)
        if default_backend() != "none":
            keep_latents(module)
        layout = probe_layout(module, quantized=options.kv_dtype == "int8")
        weights = model.weights_bytes * parameter_bytes(module) // whole
        stages.append(Stage(module, layout.ordered(), weights))
    return stages


def _are_alike(stages: Sequence[Stage]) -> bool:
    """Every rank has layers of every kind; the last of them keeps something.

    By that a rank knows that it has sent on what its layers computed.
    """
    first = stages[0].layout
    for stage in stages:
        layout = stage.layout
        if layout.kinds() != first.kinds() or layout.has_state != first.has_state:
            return False
        if not layout.slots or layout.slots[-1] is None:
            return False
    return True
