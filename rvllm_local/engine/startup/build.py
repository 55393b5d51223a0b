"""Puts an engine core together: layout, arenas, self-check, cache, scheduler.

Called on the engine's thread. Plans the arenas' bytes before it takes any.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
from collections.abc import Callable, Sequence

import mlx.core as mx

from rvllm_local import host
from rvllm_local.attention.absorbed import keep_latents
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.identity import EngineIdentity
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.prefill_budget import PrefillBudget
from rvllm_local.engine.report import CoreParts
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.startup.choose_drafter import make_speculator
from rvllm_local.engine.startup.choose_runner import LoadedParts, choose_runner
from rvllm_local.engine.startup.make_kv_cache import MakeSwapper, make_kv_cache
from rvllm_local.engine.startup.packed_runner import choose_packed_runner
from rvllm_local.engine.startup.planning import (
    arena_blocks,
    has_sinks,
    plan_engine,
    plan_model,
    usable_context,
)
from rvllm_local.engine.startup.result_cache import result_key
from rvllm_local.engine.startup.weight_forms import (
    WeightForm,
    form_in_words,
    weight_forms,
)
from rvllm_local.engine.swapper import Swapper
from rvllm_local.errors import ConfigError, UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.plan import MemoryPlan, num_snapshots
from rvllm_local.memory.prefix import root_key
from rvllm_local.memory.scratch import ModelSizes
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.adapted import adapt, adapted_bytes
from rvllm_local.models.adapter_files import Adapter, read_adapters
from rvllm_local.models.describe import describe, num_heads, widest
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.loader import LoadedModel, load_model
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)

_GPU_STEP_TARGET_S = 0.1


def open_core(
    files: ModelFiles,
    text: Vocabulary,
    options: EngineOptions,
) -> EngineCore:
    """Plan, then load, then build: what cannot fit is refused before memory is taken.

    Raises as `build_core`, and `ConfigError`.
    """
    if options.attention == "kernels" and default_backend() == "none":
        raise ConfigError(
            'attention cannot be "kernels" here: MLX has no GPU on this machine; '
            '"auto" takes the reference attention instead'
        )
    description = describe(files)
    adapters = read_adapters(options.adapters, description.module)
    forms, note = weight_forms(description, options)
    if note is not None:
        logger.warning(note)
    for form in forms[:-1]:
        plan_model(description, options)
        try:
            return _open_as(form, files, text, options, adapters)
        except UnsupportedModelError as error:
            logger.warning("weights are not held as %s: %s", form, error)
            gc.collect()
    plan_model(dataclasses.replace(description, packed_bytes=None), options)
    del description
    return _open_as("plain", files, text, options, adapters)


def _open_as(
    form: WeightForm,
    files: ModelFiles,
    text: Vocabulary,
    options: EngineOptions,
    adapters: Sequence[Adapter],
) -> EngineCore:
    loaded = load_model(files, packs=form != "plain", context=options.context_length)
    for note in loaded.notes:
        logger.info(note)
    key_of = functools.partial(result_key, files, loaded, options)
    return build_core(
        loaded,
        text,
        options,
        lambda sizes: key_of((form, *sizes)),
        adapters,
        form,
    )


def build_core(
    loaded: LoadedModel,
    text: Vocabulary,
    options: EngineOptions,
    key_of: Callable[[Sequence[object]], str] | None = None,
    adapters: Sequence[Adapter] = (),
    form: WeightForm = "plain",
) -> EngineCore:
    """An engine core ready for its first request.

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
    return assemble(parts, plan, runner, text, options, adapters)


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
) -> tuple[LoadedParts, MemoryPlan]:
    """The model with its arenas, and the plan that both fit."""
    context = usable_context(loaded.context_length, options)
    if default_backend() == "cuda" and options.ranks == 1:
        fuse_projections(loaded.module)
    paged = install(loaded.module)
    if default_backend() != "none":
        keep_latents(loaded.module)
    choice = adapt(loaded.module, adapters)
    layout = probe_layout(loaded.module, quantized=options.kv_dtype == "int8")
    blocks = arena_blocks(layout, options, context)
    weights = loaded.weights_bytes + adapted_bytes(adapters)
    plan = _accepted_plan(loaded, layout, options, context, paged, weights)
    arenas = []
    for shape, count in zip(layout.groups, blocks, strict=True):
        arenas.append(Arena(shape, count))
    snapshots = 0
    if options.cache != "off":
        snapshots = num_snapshots(layout, options.max_rows)
    kv = KVTables(layout, blocks, num_snapshots=snapshots)
    parts = LoadedParts(
        loaded, layout, arenas, kv, paged, context, plan.copy_tokens, choice
    )
    return parts, plan


def assemble(
    parts: LoadedParts,
    plan: MemoryPlan,
    runner: ModelRunner,
    text: Vocabulary,
    options: EngineOptions,
    adapters: Sequence[Adapter],
    make_swapper: MakeSwapper = Swapper,
) -> EngineCore:
    """The core over a runner that was chosen."""
    loaded, kv = parts.loaded, parts.kv
    fingerprint = f"{loaded.fingerprint}|{parts.layout}|{options.deterministic}"
    if any(shape.is_uneven for shape in parts.layout.groups):
        fingerprint += "|own sizes"  # once such blocks were padded
    roots: dict[str | None, bytes] = {None: root_key(fingerprint)}
    for adapter in adapters:
        roots[adapter.name] = root_key(f"{fingerprint}|{adapter.fingerprint}")
    kv_cache = make_kv_cache(
        parts, runner.block_io, options, roots[None], text, make_swapper
    )
    grain = BLOCK_TOKENS if options.deterministic else runner.prefill_grain
    scheduler = Scheduler(
        kv,
        kv_cache,
        max_rows=options.max_rows,
        prefill_chunk=options.prefill_chunk,
        grain=grain,
    )
    budget = PrefillBudget(
        prefill_chunk=options.prefill_chunk,
        target_s=_step_target(options),
        grain=runner.prefill_grain,
    )
    ends = _end_tokens(loaded.eos_token_ids, text, loaded.vocab_size)
    limits = EngineLimits(
        loaded.vocab_size,
        parts.context,
        scheduler.longest_sequence,
        ends,
        options.max_rows + options.max_waiting,
        tuple(adapter.name for adapter in adapters),
        keeps_states=kv.snapshots is not None,
    )
    identity = EngineIdentity(frozenset(ends), roots, plan.lines())
    reserve_memory = None
    if _is_on_cpu():
        reserve_memory = functools.partial(host.reserve_heap, plan.scratch)
    speculator, drafting = make_speculator(runner, kv, options)
    return EngineCore(
        CoreParts(kv, kv_cache, scheduler, runner, speculator, drafting),
        budget,
        limits,
        text,
        identity,
        reserve_memory,
    )


def _is_on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def _end_tokens(
    of_config: Sequence[int],
    text: Vocabulary,
    vocab_size: int,
) -> tuple[int, ...]:
    """Ids that end an answer: the configuration's, and those that the text side adds."""
    more = [token for token in sorted(text.end_token_ids) if token < vocab_size]
    return tuple(dict.fromkeys((*of_config, *more)))


def _accepted_plan(
    loaded: LoadedModel,
    layout: KVLayout,
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
        layout, options, context=context, weights=weights, sizes=sizes, paged=paged
    )
    plan.check()
    return plan


def _step_target(options: EngineOptions) -> float | None:
    """A GPU needs chunks of some size to be fast at all.

    On a CPU a step may grow with the decode step beside it.
    """
    if options.step_target_ms is not None:
        return options.step_target_ms / 1000
    return None if _is_on_cpu() else _GPU_STEP_TARGET_S
