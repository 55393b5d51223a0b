"""Makes a runner over a model's files: weights, layout, arenas, and the self-check.

Plans the arenas' bytes before it takes any.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from rvllm_local.attention.absorbed import keep_latents
from rvllm_local.attention.in_order import install_in_order
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.arena_sizes import arena_blocks, usable_context
from rvllm_local.engine.startup.choose_runner import LoadedParts, choose_runner
from rvllm_local.engine.startup.half_precision import in_float16
from rvllm_local.engine.startup.packed_runner import choose_packed_runner
from rvllm_local.engine.startup.planning import has_sinks, plan_engine, plan_model
from rvllm_local.engine.startup.result_cache import result_key
from rvllm_local.engine.startup.weight_forms import (
    WeightForm,
    form_in_words,
    weight_forms,
)
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.plan import MemoryPlan, num_snapshots
from rvllm_local.memory.scratch import ModelSizes
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.adapted import adapt, adapted_bytes
from rvllm_local.models.adapter_files import Adapter
from rvllm_local.models.describe import describe, num_heads, widest
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.loader import LoadedModel, load_model
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.mtp import is_head, load_head, watch_end
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)


class OpenedRunner(NamedTuple):
    """A runner in the best way that is right here, its model, and the plan of both."""

    parts: LoadedParts
    plan: MemoryPlan
    runner: ModelRunner


def open_runner(
    files: ModelFiles,
    options: EngineOptions,
    adapters: Sequence[Adapter] = (),
) -> OpenedRunner:
    """Plan, then load: what cannot fit is refused before memory is taken.

    Raises `ConfigError`, and as `runner_of`.
    """
    description = describe(files)
    forms, note = weight_forms(description, options)
    if note is not None:
        logger.warning(note)
    for form in forms[:-1]:
        plan_model(description, options)
        try:
            return _open_as(form, files, options, adapters)
        except UnsupportedModelError as error:
            logger.warning("weights are not held as %s: %s", form, error)
            gc.collect()
    plan_model(dataclasses.replace(description, packed_bytes=None), options)
    del description
    return _open_as("plain", files, options, adapters)


def _open_as(
    form: WeightForm,
    files: ModelFiles,
    options: EngineOptions,
    adapters: Sequence[Adapter],
) -> OpenedRunner:
    load = functools.partial(
        load_model, files, packs=form != "plain", context=options.context_length
    )
    loaded = in_float16(load(), options, load)
    if options.drafts_by_head:
        loaded = dataclasses.replace(loaded, head=load_head(files, loaded))
    for note in loaded.notes:
        logger.info(note)
    key_of = functools.partial(result_key, files, loaded, options)
    return runner_of(
        loaded,
        options,
        adapters,
        lambda sizes: key_of((form, *sizes)),
        form,
    )


def runner_of(
    loaded: LoadedModel,
    options: EngineOptions,
    adapters: Sequence[Adapter] = (),
    key_of: Callable[[Sequence[object]], str] | None = None,
    form: WeightForm = "plain",
) -> OpenedRunner:
    """A runner of a loaded model.

    With `key_of` what an earlier start found out is taken from its note. Raises
    `MemoryBudgetError` if the KV budget is too small and `UnsupportedModelError` if the
    self-check fails.
    """
    parts, plan = load_parts(loaded, options, adapters)
    key = None
    if key_of is not None:
        marks = tuple(adapter.fingerprint for adapter in adapters)
        blocks = tuple(pool.num_total for pool in parts.kv.pools)
        key = key_of((parts.layout, blocks, plan, marks))
    if loaded.packs:
        runner, scratch = choose_packed_runner(parts, form, options, key)
    else:
        runner, scratch = choose_runner(parts, options, key)
        runner.weight_form = form_in_words("plain")
    plan = measured_plan(plan, runner, scratch)
    return OpenedRunner(parts, plan, runner)


def measured_plan(
    plan: MemoryPlan, runner: ModelRunner, scratch: int | None
) -> MemoryPlan:
    """The plan with what a step took, if that is known; MLX is told to keep to it.

    Raises `MemoryBudgetError` if it does not fit.
    """
    plan = dataclasses.replace(plan, weight_form=runner.weight_form)
    if scratch is not None:
        plan = plan.with_measured(scratch)
        plan.check()
    # Scratch counts arrays twice: in use, and kept for the next ones.
    mx.set_cache_limit(plan.scratch // 2)
    return plan


def load_parts(
    loaded: LoadedModel,
    options: EngineOptions,
    adapters: Sequence[Adapter],
    blocks: tuple[int, ...] | None = None,
) -> tuple[LoadedParts, MemoryPlan]:
    """The model with its arenas, and the plan that both fit.

    A stage of a pipeline gets as many `blocks` as the others have.
    """
    context = usable_context(loaded.context_length, options)
    if default_backend() == "cuda" and options.ranks == 1:
        fuse_projections(loaded.module)
    paged = install(loaded.module)
    install_in_order(loaded.module)
    if default_backend() != "none":
        keep_latents(loaded.module)
    choice = adapt(loaded.module, adapters)
    layout = probe_layout(loaded.module, quantized=options.kv_dtype == "int8")
    if options.is_pipeline:
        layout = layout.ordered()
    if blocks is None:
        blocks = arena_blocks(layout, options, context)
    weights = loaded.weights_bytes + adapted_bytes(adapters)
    plan = _accepted_plan(loaded, layout, blocks, options, context, paged, weights)
    arenas = []
    for shape, count in zip(layout.groups, blocks, strict=True):
        arenas.append(Arena(shape, count))
    snapshots = 0
    if options.cache != "off":
        snapshots = num_snapshots(layout, options.max_rows)
    kv = KVTables(layout, blocks, num_snapshots=snapshots)
    keeps_ends = options.drafts_by_head or is_head(loaded.module)
    if keeps_ends:
        watch_end(loaded.module)
    parts = LoadedParts(
        loaded,
        layout,
        arenas,
        kv,
        paged,
        context,
        plan.copy_tokens,
        choice,
        keeps_ends=keeps_ends,
    )
    return parts, plan


def _accepted_plan(
    loaded: LoadedModel,
    layout: KVLayout,
    blocks: tuple[int, ...],
    options: EngineOptions,
    context: int,
    paged: bool,
    weights: int,
) -> MemoryPlan:
    """The plan of a loaded model, checked; its scratch is an estimate."""
    sizes = ModelSizes(
        widest(loaded.config, "hidden_size"),
        widest(loaded.config, "intermediate_size"),
        loaded.vocab_size,
        num_heads(loaded.config),
        layout.groups[0].dtype.size,
        has_sinks(loaded.module),
    )
    plan = plan_engine(
        layout,
        blocks,
        options,
        context=context,
        weights=weights,
        sizes=sizes,
        config=loaded.config,
        paged=paged,
    )
    plan.check()
    return plan
