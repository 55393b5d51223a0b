"""Puts an engine core together for a loaded model: layout, arenas, self-check, scheduler.

Called on the engine's thread. Plans the arenas' bytes before it takes any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from rvllm_local import host
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.reference import ReferenceBackend
from rvllm_local.attention.seam import install
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.core import EngineCore, EngineIdentity
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.options import EngineOptions
from rvllm_local.engine.pace import Pace
from rvllm_local.engine.planning import arena_blocks, plan_engine, plan_model
from rvllm_local.engine.residence import CachePolicy, KVResidence
from rvllm_local.engine.runner import ModelRunner, RunMode
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.selfcheck import choose_runner, rows_are_independent
from rvllm_local.engine.warmup import measure_scratch
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.plan import MemoryPlan, ModelSizes, num_snapshots
from rvllm_local.memory.prefix import root_key
from rvllm_local.memory.spill import BlockStore
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels.kernels import default_backend
from rvllm_local.models.describe import describe, num_heads, widest
from rvllm_local.models.fuse import fuse_projections
from rvllm_local.models.loader import LoadedModel, ModelFiles, load_model

logger = logging.getLogger(__name__)

_GPU_STEP_TARGET_S = 0.1


def open_core(files: ModelFiles, text: Vocabulary, options: EngineOptions) -> EngineCore:
    """Plan, then load, then build: what cannot fit is refused before memory is taken."""
    plan_model(describe(files), options)
    return build_core(load_model(files), text, options)


def build_core(loaded: LoadedModel, text: Vocabulary, options: EngineOptions) -> EngineCore:
    """An engine core ready for its first request.

    Raises `MemoryBudgetError` if the KV budget is too small and `UnsupportedModelError` if the self-check fails.
    """
    context = min(loaded.context_length, options.context_length or loaded.context_length)
    if default_backend() == "cuda":
        fuse_projections(loaded.module)
    paged = install(loaded.module)
    layout = probe_layout(loaded.module, quantized=options.kv_dtype == "int8")
    blocks = arena_blocks(layout, options, context)
    plan = _accepted_plan(loaded, layout, options, context, paged)
    arenas = [Arena(shape, count) for shape, count in zip(layout.groups, blocks, strict=True)]
    kv = KVTables(
        layout, blocks, num_snapshots=num_snapshots(layout, options.max_rows) if options.cache != "off" else 0
    )
    runner = _choose_runner(loaded, layout, arenas, kv, paged, options, plan.copy_tokens)
    if options.deterministic:
        runner.make_deterministic(rows_are_independent(runner, kv, loaded.vocab_size))
    if options.self_check:
        scratch = measure_scratch(runner, kv, context=context, rows=options.max_rows, chunk=options.prefill_chunk)
        plan = plan.with_measured(scratch)
        plan.check()
    _keep_to(plan)
    fingerprint = f"{loaded.fingerprint}|{layout}|{options.deterministic}"
    residence = KVResidence(
        kv,
        runner.block_io,
        CachePolicy(reuse=options.cache != "off", decoded=not options.deterministic),
        None if layout.has_state else _open_store(options, root_key(fingerprint)),
        SwapSpace(None if options.cache_dir is None else Path(options.cache_dir)),
        show=lambda token: _shown(text, token),
    )
    scheduler = Scheduler(
        kv,
        residence,
        max_rows=options.max_rows,
        prefill_chunk=options.prefill_chunk,
        whole_blocks=options.deterministic,
    )
    return EngineCore(
        runner,
        kv,
        residence,
        scheduler,
        Pace(prefill_chunk=options.prefill_chunk, target_s=_step_target(options)),
        EngineLimits(
            loaded.vocab_size,
            context,
            scheduler.longest_sequence,
            tuple(loaded.eos_token_ids),
            options.max_rows + options.max_waiting,
        ),
        text,
        EngineIdentity(
            frozenset(loaded.eos_token_ids),
            root_key(fingerprint),
            plan.lines(),
        ),
    )


def _shown(text: Vocabulary, token: int) -> str:
    """A token's id and its text."""
    piece = text.id_to_bytes(token)
    return f"{token} ({(piece or b'').decode(errors='replace')!r})"


def _accepted_plan(
    loaded: LoadedModel, layout: KVLayout, options: EngineOptions, context: int, paged: bool
) -> MemoryPlan:
    """The plan of a loaded model, checked; its scratch is an estimate."""
    sizes = ModelSizes(
        widest(loaded.config, "hidden_size"),
        widest(loaded.config, "intermediate_size"),
        loaded.vocab_size,
        num_heads(loaded.config),
        layout.groups[0].dtype.size,
    )
    plan = plan_engine(layout, options, context=context, weights=loaded.weights_bytes, sizes=sizes, paged=paged)
    plan.check()
    return plan


def _keep_to(plan: MemoryPlan) -> None:
    """From here on temporary memory keeps to the plan, and the process has its size."""
    mx.set_cache_limit(plan.scratch // 2)  # the plan counts temporary arrays twice: in use, and kept for the next ones
    if mx.default_device() == mx.Device(mx.cpu):
        host.reserve_heap(plan.scratch)


def _open_store(options: EngineOptions, fingerprint: bytes) -> BlockStore | None:
    if options.cache != "disk" or options.cache_dir is None:
        return None
    return BlockStore(
        Path(options.cache_dir) / "kv",
        fingerprint=fingerprint,
        budget_bytes=options.disk_cache_bytes,
        warn=logger.warning,
    )


def _step_target(options: EngineOptions) -> float | None:
    """A GPU needs chunks of some size to be fast at all; on a CPU a step may grow with the decode step beside it."""
    if options.step_target_s is not None:
        return options.step_target_s
    return None if mx.default_device() == mx.Device(mx.cpu) else _GPU_STEP_TARGET_S


def _choose_runner(
    loaded: LoadedModel,
    layout: KVLayout,
    arenas: list[Arena],
    kv: KVTables,
    paged: bool,
    options: EngineOptions,
    copy_tokens: int,
) -> ModelRunner:
    """The kernels where they can run and agree with mlx-lm on this very machine, otherwise the reference."""

    def checked(make: Callable[[RunMode], ModelRunner]) -> ModelRunner:
        if not options.self_check:
            return make(RunMode(batched=paged, dense=not paged))
        return choose_runner(loaded.module, make, kv, paged=paged, vocab_size=loaded.vocab_size)

    wants_kernels = options.attention == "kernels" or (options.attention == "auto" and default_backend() != "none")
    if wants_kernels:
        try:
            kernels = KernelBackend(arenas)
            return checked(lambda mode: _kernel_runner(loaded, layout, kernels, mode))
        except UnsupportedModelError as error:
            if options.attention == "kernels":
                raise
            logger.warning("attention is served by the reference: %s", error)
    reference = ReferenceBackend(arenas, copy_tokens)
    return checked(lambda mode: ModelRunner(loaded.module, layout, reference, mode, loaded.vocab_size))


def _kernel_runner(loaded: LoadedModel, layout: KVLayout, kernels: KernelBackend, mode: RunMode) -> ModelRunner:
    compilable = mode.batched and not mode.dense and not layout.has_state
    compiled = CompiledDecode(loaded.module, layout, kernels) if compilable else None
    return ModelRunner(loaded.module, layout, kernels, mode, loaded.vocab_size, compiled)
