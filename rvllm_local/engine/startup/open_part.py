"""Opens one rank's part of a model: its weights, its arenas, and what makes its calls.

All ranks do the same in the same order, since their calls wait for each other.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import mlx.core as mx

from rvllm_local import host
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.arena_sizes import usable_context
from rvllm_local.engine.startup.choose_runner import LoadedParts, choose_runner
from rvllm_local.engine.startup.make_kv_cache import kv_fingerprint, open_store
from rvllm_local.engine.startup.open_runner import load_parts, measured_plan
from rvllm_local.engine.startup.pipeline_stages import common_blocks, plan_stages
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.engine.startup.weight_forms import form_in_words
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.plan import MemoryPlan
from rvllm_local.memory.prefix import root_key
from rvllm_local.models.adapter_files import Adapter, read_adapters
from rvllm_local.models.adapter_parts import adapters_of_layers, divide_adapters
from rvllm_local.models.describe import describe
from rvllm_local.models.encoders.setup import pooled_setup
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.stages import join_stages, take_stage
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelPart:
    """One rank's part, ready for calls, and the plan that it fits."""

    parts: LoadedParts
    plan: MemoryPlan
    runner: ModelRunner
    adapters: Sequence[Adapter] = ()

    def open_store(self, options: EngineOptions) -> BlockStore | None:
        """This part's blocks on disk, if it keeps any there."""
        if options.cache != "disk":
            return None
        root = root_key(kv_fingerprint(self.parts, options))
        return open_store(options, root, (), self.parts)

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Blocks of each group's arena, which all ranks must have alike."""
        return tuple(pool.num_total for pool in self.parts.kv.pools)


def plan_part(files: ModelFiles, options: EngineOptions, rank: int) -> None:
    """Refuse a model that this rank cannot serve, before memory is taken.

    Raises `UnsupportedModelError`, `MemoryBudgetError` and as `describe` and
    `read_adapters` do.
    """
    if pooled_setup(files) is not None:
        raise UnsupportedModelError(
            f"{files.name} only reads texts; such a model is not divided between ranks"
        )
    plan_model(describe(files), options, rank=rank)


def open_part(
    files: ModelFiles, options: EngineOptions, group: mx.distributed.Group
) -> ModelPart:
    """Load this rank's part, and check with the others that the logits are right.

    A stage of a pipeline is checked alone: where one of its ways to be called failed,
    the next rank would wait for ever for what it did not send.

    Raises as `open_core` does.
    """
    adapters = _adapters_of(files, options, group)
    loaded = load_model(
        files, group=group, context=options.context_length, pipeline=options.pipeline
    )
    _give_back()
    parts, plan = load_parts(loaded, options, adapters, _blocks(files, options))
    parts = dataclasses.replace(
        parts,
        ranks=group.size(),
        rank=group.rank(),
        is_stage=options.pipeline,
    )
    runner, scratch = choose_runner(parts, options, None)
    _give_back()
    if options.pipeline:
        join_stages(loaded.module, group.size(), group.rank())
    runner.weight_form = form_in_words("plain")
    return ModelPart(parts, measured_plan(plan, runner, scratch), runner, adapters)


def _give_back() -> None:
    """Keep nothing of what was in between: whole tensors, and the check's own arrays.

    A rank has memory for its part, and for little beside it.
    """
    mx.clear_cache()
    host.trim_heap()


def _blocks(files: ModelFiles, options: EngineOptions) -> tuple[int, ...] | None:
    """Of each arena, where all ranks must be asked what fits; else None."""
    if not options.is_pipeline:
        return None
    description = describe(files)
    context = usable_context(description.context_length, options)
    return common_blocks(plan_stages(description, options), options, context)


def _adapters_of(
    files: ModelFiles, options: EngineOptions, group: mx.distributed.Group
) -> list[Adapter]:
    """This rank's part of the adapters that the options name."""
    if not options.adapters:
        return []
    description = describe(files)
    adapters = read_adapters(options.adapters, description.module)
    if options.pipeline:
        module, config = description.module, description.config
        take_stage(module, config, group.size(), group.rank())
        return adapters_of_layers(adapters, description.module)
    return divide_adapters(adapters, description.module, description.config, group)
