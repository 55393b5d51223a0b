"""Proves at the start how a model may be called: logits held against mlx-lm's, shapes of calls, and what a step takes.

What an earlier start proved is taken from its note, where nothing that it depends on has changed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.residual import JoinedAdds, install_joined_adds
from rvllm_local.attention.rotation import install_rotations
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.options import EngineOptions
from rvllm_local.engine.runner import ModelRunner, RunMode
from rvllm_local.engine.startup.measure_scratch import measure_scratch
from rvllm_local.engine.startup.result_cache import (
    StartupResult,
    read_result,
    write_result,
)
from rvllm_local.engine.startup.selfcheck import (
    find_agreeing_runner,
    rows_are_independent,
)
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import AddNorm, default_backend
from rvllm_local.models.adapted import AdapterChoice
from rvllm_local.models.describe import stated_heads
from rvllm_local.models.loader import LoadedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """A loaded model with its arenas. `paged`: its attention goes through the seam; `copy_tokens` as the back end's."""

    loaded: LoadedModel
    layout: KVLayout
    arenas: Sequence[Arena]
    kv: KVTables
    paged: bool
    context: int
    copy_tokens: int
    adapters: AdapterChoice


def choose_runner(
    model: LoadedParts, options: EngineOptions, key: str | None
) -> tuple[ModelRunner, int | None]:
    """A runner in the fastest mode that is right here, and the bytes that a step takes (None if nothing is checked).

    `key` is where an earlier start noted its result, if it may be used. Raises `UnsupportedModelError`.
    """
    if default_backend() != "none" or not options.self_check:
        key = None  # kernels are compiled by what proves them, so they are proven at each start
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    result = None if key is None else read_result(key, cache_dir)
    runner = _make_runner(model, options, result)
    row_group, vocab_size = 0, model.loaded.vocab_size
    if options.deterministic:
        row_group = (
            result.row_group
            if result
            else rows_are_independent(runner, model.kv, vocab_size)
        )
        runner.make_deterministic(row_group)
    if result is not None or not options.self_check:
        return runner, None if result is None else result.scratch
    scratch = measure_scratch(
        runner,
        model.kv,
        context=model.context,
        rows=options.max_rows,
        chunk=options.prefill_chunk,
    )
    if key is not None:
        write_result(key, StartupResult(runner.mode, row_group, scratch), cache_dir)
    return runner, scratch


def _make_runner(
    model: LoadedParts, options: EngineOptions, result: StartupResult | None
) -> ModelRunner:
    """The kernels where they can run and agree with mlx-lm on this very machine, otherwise the reference."""
    module, vocab_size = model.loaded.module, model.loaded.vocab_size

    def checked(
        make: Callable[[RunMode], ModelRunner],
        *,
        rotates: bool = False,
        joins: bool = False,
    ) -> ModelRunner:
        if result is not None:
            return make(result.mode)
        if not options.self_check:
            return make(RunMode(batched=model.paged, dense=not model.paged))
        return find_agreeing_runner(
            module,
            make,
            model.kv,
            paged=model.paged,
            vocab_size=vocab_size,
            rotates=rotates,
            joins=joins,
        )

    wants_kernels = options.attention == "kernels" or (
        options.attention == "auto" and default_backend() != "none"
    )
    if wants_kernels:
        try:
            heads = (
                stated_heads(model.loaded.config)
                if model.layout.has_attention
                else None
            )
            kernels = KernelBackend(model.arenas, heads=heads)
            joined, rotates = None, False
            if _is_compiled(model):
                joined = install_joined_adds(module, AddNorm(counter=kernels.counter))
                rotates = install_rotations(module) > 0
            make = functools.partial(_kernel_runner, model, kernels, joined)
            return checked(make, rotates=rotates, joins=joined is not None)
        except UnsupportedModelError as error:
            if options.attention == "kernels":
                raise
            logger.warning("attention is served by the reference: %s", error)
    reference = ReferenceBackend(model.arenas, model.copy_tokens)
    return checked(
        lambda mode: ModelRunner(
            module, model.layout, reference, mode, vocab_size, None, model.adapters
        )
    )


def _is_compiled(model: LoadedParts) -> bool:
    """The compiled call takes neither recurrent state nor adapters."""
    return not model.layout.has_state and model.adapters.count == 0


def _kernel_runner(
    model: LoadedParts, kernels: KernelBackend, joined: JoinedAdds | None, mode: RunMode
) -> ModelRunner:
    module, layout = model.loaded.module, model.layout
    compilable = mode.batched and not mode.dense and _is_compiled(model)
    compiled = None
    if compilable:
        compiled = CompiledDecode(
            module,
            layout,
            kernels,
            rotates=mode.rotates,
            joined=joined if mode.joins else None,
        )
    return ModelRunner(
        module, layout, kernels, mode, model.loaded.vocab_size, compiled, model.adapters
    )
