"""Sizes an engine before it takes memory: blocks for the KV budget, and the plan that they make with the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.attention.absorbed import keep_latents
from rvllm_local.attention.probe import probe_layout
from rvllm_local.engine.startup.arena_sizes import (
    FEWEST_BLOCKS,
    arena_blocks,
    usable_context,
)
from rvllm_local.engine.startup.pipeline_stages import common_blocks, plan_stages
from rvllm_local.engine.startup.weight_forms import form_in_words, weight_forms
from rvllm_local.machine import device_memory
from rvllm_local.memory.blocks import blocks_for
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.plan import MemoryPlan, make_plan
from rvllm_local.memory.scratch import ModelSizes
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.adapted import adapted_bytes
from rvllm_local.models.adapter_files import read_adapters
from rvllm_local.models.describe import ModelDescription, describe
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import describe_head
from rvllm_local.models.sharding import divide_outline, parameter_bytes
from rvllm_local.options import EngineOptions


def plan_model(
    model: ModelDescription,
    options: EngineOptions,
    *,
    strict: bool = True,
    rank: int | None = None,
) -> MemoryPlan:
    """The plan of a model that is not loaded; of several ranks', that of one.

    `rank` is which; None is the one that takes most. With `strict`, raises
    `MemoryBudgetError` if it does not fit. Its adapters are read and held against it.
    Raises what `read_adapter` does.
    """
    # A rank has a part of them, and is given room for all.
    adapted = adapted_bytes(read_adapters(options.adapters, model.module))
    context = usable_context(model.context_length, options)
    model, layout, blocks = _part_of(model, options, context, rank)
    sizes = ModelSizes(
        model.hidden_size,
        model.intermediate_size,
        model.vocab_size,
        model.num_heads,
        layout.groups[0].dtype.size,
        has_sinks(model.module),
    )
    forms, _ = weight_forms(model, options)
    weights = model.weights_bytes
    if forms[0] != "plain" and model.packed_bytes is not None:
        weights = model.packed_bytes
    weights += adapted
    plan = plan_engine(
        layout,
        blocks,
        options,
        context=context,
        weights=weights,
        sizes=sizes,
        config=model.config,
    )
    plan = dataclasses.replace(plan, weight_form=form_in_words(forms[0]))
    if strict:
        plan.check()
    return plan


def _part_of(
    model: ModelDescription, options: EngineOptions, context: int, rank: int | None
) -> tuple[ModelDescription, KVLayout, tuple[int, ...]]:
    """What one process has: its part of the model, its KV, and blocks of each arena."""
    if options.is_pipeline:
        stages = plan_stages(model, options)
        blocks = common_blocks(stages, options, context)
        stage = max(stages, key=lambda stage: stage.weights_bytes)
        if rank is not None:
            stage = stages[rank]
        return stage.describe(model), stage.layout, blocks
    if options.ranks > 1:
        model = _divided(model, options.ranks)
    if default_backend() != "none":
        keep_latents(model.module)
    layout = probe_layout(model.module, quantized=options.kv_dtype == "int8")
    return model, layout, arena_blocks(layout, options, context)


def _divided(model: ModelDescription, ranks: int) -> ModelDescription:
    """What one rank of several takes. Raises `UnsupportedModelError`."""
    whole = parameter_bytes(model.module)
    divide_outline(model.module, model.config, ranks)
    part = parameter_bytes(model.module)
    return dataclasses.replace(
        model, weights_bytes=model.weights_bytes * part // whole, packed_bytes=None
    )


def has_sinks(module: nn.Module) -> bool:
    """True if attention has a sink beside the keys."""
    return any(name.endswith("sinks") for name, _ in tree_flatten(module.parameters()))


def plan_engine(
    layout: KVLayout,
    blocks: tuple[int, ...],
    options: EngineOptions,
    *,
    context: int,
    weights: int,
    sizes: ModelSizes,
    config: Mapping[str, Any],
    paged: bool = True,
) -> MemoryPlan:
    """The plan of an engine with so many blocks of each group, for a model of this
    configuration.

    `paged`: attention goes through the back end, which on a CPU keeps the context of a
    prefilling prompt densely. Ranks of one machine share its memory.
    """
    shares = options.ranks_here
    reserve = options.system_reserve
    if reserve is not None:
        reserve //= shares
    plan = make_plan(
        layout,
        weights=weights,
        blocks=blocks,
        sizes=sizes,
        device=device_memory() // shares,
        reserve=reserve,
        context=context,
        rows=options.max_rows,
        chunk=min(options.prefill_chunk, context),
        kv_asked=options.kv_memory or 0,
        copies=paged and mx.default_device() == mx.Device(mx.cpu),
    )
    if not options.drafts_by_model:
        return plan
    drafter = drafter_bytes(options, config, plan.arena_tokens)
    return dataclasses.replace(plan, drafter=drafter)


def drafter_bytes(
    options: EngineOptions, config: Mapping[str, Any], num_tokens: int
) -> int:
    """What the model that drafts takes, for texts of so many tokens in all.

    `config` is the configuration of the model that it drafts for, as whose head it may
    come.
    """
    if options.drafts_by_head:
        description = describe_head(config)
    else:
        cache_dir = Path(options.cache_dir) if options.cache_dir else None
        description = describe(locate(options.draft, cache_dir=cache_dir))
    smaller_options = drafter_options(options, description.module, num_tokens)
    plan = plan_model(description, smaller_options, strict=False)
    return plan.total - plan.process


def drafter_options(
    options: EngineOptions,
    module: nn.Module,
    num_tokens: int,
) -> EngineOptions:
    """How the model that drafts is opened: with room for so many tokens."""
    layout = probe_layout(module, quantized=options.kv_dtype == "int8")
    num_blocks = blocks_for(num_tokens) + 1 + FEWEST_BLOCKS
    block_bytes = sum(shape.block_bytes for shape in layout.groups)
    return msgspec.structs.replace(
        options,
        draft="off",
        adapters=(),
        cache="off",
        context_length=None,
        deterministic=False,
        kv_memory=num_blocks * block_bytes,
    )
