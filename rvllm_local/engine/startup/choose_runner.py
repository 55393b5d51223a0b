"""Finds out at the start how a model may be called, and the memory that a step takes.

Logits are held against mlx-lm's. What an earlier start found out is taken from its
note, where nothing that it depends on has changed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.residual import JoinedAdds, install_joined_adds
from rvllm_local.attention.rotation import install_rotations
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.stage_call import StageCall
from rvllm_local.engine.startup.install_kernels import install_kernels
from rvllm_local.engine.startup.measure_scratch import measure_scratch
from rvllm_local.engine.startup.result_cache import (
    StartupResult,
    read_result,
    write_result,
)
from rvllm_local.engine.startup.selfcheck import (
    find_agreeing_runner,
    make_rows_independent,
)
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import AddNorm, default_backend
from rvllm_local.models.adapted import AdapterChoice
from rvllm_local.models.head_counts import stated_heads
from rvllm_local.models.loader import LoadedModel
from rvllm_local.options import EngineOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """A loaded model with its arenas.

    paged: its attention goes through the seam.
    copy_tokens: as the reference back end takes it.
    ranks: how many processes have a part of the model each; this is that of `rank`.
    is_stage: the part is some of the layers, as a pipeline has them.
    keeps_ends: a head reads the states that its calls end with. A compiled step would
        not tell them: its graph hands out nothing but its results.
    """

    loaded: LoadedModel
    layout: KVLayout
    arenas: Sequence[Arena]
    kv: KVTables
    paged: bool
    context: int
    copy_tokens: int
    adapters: AdapterChoice
    ranks: int = 1
    rank: int = 0
    is_stage: bool = False
    keeps_ends: bool = False


def choose_runner(
    parts: LoadedParts,
    options: EngineOptions,
    key: str | None,
) -> tuple[ModelRunner, int | None]:
    """A runner in the fastest mode that is right here, and the bytes that a step takes.

    The bytes are None if nothing is checked. `key` is where an earlier start noted its
    result, if that may be used. Raises `UnsupportedModelError`.
    """
    if default_backend() != "none" or not options.self_check:
        key = None  # the self-check also compiles the kernels: it runs at each start
    if parts.ranks > 1:
        key = None  # all ranks make the same calls: none may know a result alone
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    known_result = None if key is None else read_result(key, cache_dir)
    runner = _kernels_or_reference(parts, options, known_result)
    row_group = 0
    if options.deterministic:
        row_group = _row_group(parts, runner, known_result)
    if not options.self_check:
        return runner, None
    if known_result is not None:
        return runner, known_result.scratch
    scratch = measure_scratch(
        runner,
        parts.kv,
        context=parts.context,
        rows=options.max_rows,
        chunk=options.prefill_chunk,
    )
    if key is not None:
        write_result(key, StartupResult(runner.mode, row_group, scratch), cache_dir)
    return runner, scratch


def _row_group(
    parts: LoadedParts,
    runner: ModelRunner,
    known_result: StartupResult | None,
) -> int:
    """Make the runner deterministic; returns the rows of a decode call.

    Only our products may give a row the same bits among any number of rows.
    """
    if known_result is not None:
        runner.make_deterministic(known_result.row_group)
    else:
        make_rows_independent(
            runner,
            parts.kv,
            parts.loaded.vocab_size,
            tries_fewer=default_backend() != "none",
        )
    assert runner.row_group is not None
    return runner.row_group


def _kernels_or_reference(
    parts: LoadedParts,
    options: EngineOptions,
    known_result: StartupResult | None,
) -> ModelRunner:
    """The kernels where they run and agree with mlx-lm here, otherwise the reference."""
    has_gpu = default_backend() != "none"
    if options.attention == "kernels" or (options.attention == "auto" and has_gpu):
        try:
            return _over_kernels(parts, options, known_result)
        except UnsupportedModelError as error:
            if options.attention == "kernels":
                raise
            logger.warning("attention is served by the reference: %s", error)
    backend = ReferenceBackend(parts.arenas, parts.copy_tokens)
    make = functools.partial(_make_runner, parts, backend)
    return _checked(parts, options, known_result, make)


def _over_kernels(
    parts: LoadedParts,
    options: EngineOptions,
    known_result: StartupResult | None,
) -> ModelRunner:
    module = parts.loaded.module
    heads = None
    if parts.layout.has_attention:
        heads = stated_heads(parts.loaded.config)
    if heads is not None and not parts.is_stage:
        heads //= parts.ranks
    kernels = KernelBackend(parts.arenas, heads=heads)
    if parts.ranks > 1:  # what compiled steps note does not cross a sum of all ranks
        make_plain = functools.partial(_make_runner, parts, kernels)
        return _checked(parts, options, known_result, make_plain)
    dtype = parts.arenas[0].shape.dtype if parts.arenas else mx.bfloat16
    install_kernels(module, parts.loaded.config, dtype, options, kernels.counter)
    joined = install_joined_adds(module, AddNorm(counter=kernels.counter))
    rotates = install_rotations(module) > 0
    make = functools.partial(_make_kernel_runner, parts, kernels, joined)
    return _checked(
        parts, options, known_result, make, rotates=rotates, joins=joined is not None
    )


def _checked(
    parts: LoadedParts,
    options: EngineOptions,
    known_result: StartupResult | None,
    make: Callable[[RunMode], ModelRunner],
    *,
    rotates: bool = False,
    joins: bool = False,
) -> ModelRunner:
    """A runner in the mode that was noted, or that agrees with mlx-lm now."""
    if known_result is not None:
        return make(known_result.mode)
    if not options.self_check:
        return make(RunMode(batched=parts.paged, dense=not parts.paged))
    return find_agreeing_runner(
        parts.loaded.module,
        make,
        parts.kv,
        paged=parts.paged,
        vocab_size=parts.loaded.vocab_size,
        rotates=rotates,
        joins=joins,
    )


def _make_runner(
    parts: LoadedParts,
    backend: KVBackend,
    mode: RunMode,
    compiled: CompiledDecode | None = None,
) -> ModelRunner:
    module = parts.loaded.module
    return ModelRunner(
        StageCall(module) if parts.is_stage else module,
        parts.layout,
        backend,
        mode,
        parts.loaded.vocab_size,
        compiled,
        parts.adapters,
    )


def _make_kernel_runner(
    parts: LoadedParts,
    kernels: KernelBackend,
    joined: JoinedAdds | None,
    mode: RunMode,
) -> ModelRunner:
    compiled = None
    if mode.batched and not mode.dense and not parts.keeps_ends:
        compiled = CompiledDecode(
            parts.loaded.module,
            parts.layout,
            kernels,
            rotates=mode.rotates,
            joined=joined if mode.joins else None,
            adapters=parts.adapters,
            prepares=True,
        )
    return _make_runner(parts, kernels, mode, compiled)
