"""Puts an engine core together: layout, arenas, self-check, cache, scheduler.

Called on the engine's thread. Plans the arenas' bytes before it takes any.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import mlx.core as mx

from rvllm_local import host
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.identity import EngineIdentity
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.prefill_budget import PrefillBudget
from rvllm_local.engine.report import CoreParts
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.startup.choose_drafter import make_speculator
from rvllm_local.engine.startup.choose_runner import LoadedParts
from rvllm_local.engine.startup.make_kv_cache import (
    OF_ONE_PROCESS,
    Tiers,
    kv_fingerprint,
    make_kv_cache,
)
from rvllm_local.engine.startup.open_runner import (
    OpenedRunner,
    open_runner,
    runner_of,
)
from rvllm_local.errors import ConfigError
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.plan import MemoryPlan
from rvllm_local.memory.prefix import root_key
from rvllm_local.metal_kernels import default_backend
from rvllm_local.models.adapter_files import Adapter, read_adapters
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import LoadedModel
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
    adapters: Sequence[Adapter] = ()
    if options.adapters:
        adapters = read_adapters(options.adapters, describe(files).module)
    opened = open_runner(files, options, adapters)
    return assemble(*opened, text, options, adapters)


def build_core(
    loaded: LoadedModel,
    text: Vocabulary,
    options: EngineOptions,
    adapters: Sequence[Adapter] = (),
) -> EngineCore:
    """An engine core of a loaded model, ready for its first request.

    Raises `MemoryBudgetError` if the KV budget is too small and `UnsupportedModelError`
    if the self-check fails.
    """
    opened = runner_of(loaded, options, adapters)
    return assemble(*opened, text, options, adapters)


def assemble(
    parts: LoadedParts,
    plan: MemoryPlan,
    runner: ModelRunner,
    text: Vocabulary,
    options: EngineOptions,
    adapters: Sequence[Adapter],
    tiers: Tiers = OF_ONE_PROCESS,
) -> EngineCore:
    """The core over a runner that was chosen."""
    loaded, kv = parts.loaded, parts.kv
    fingerprint = kv_fingerprint(parts, options)
    roots: dict[str | None, bytes] = {None: root_key(fingerprint)}
    for adapter in adapters:
        roots[adapter.name] = root_key(f"{fingerprint}|{adapter.fingerprint}")
    kv_cache = make_kv_cache(parts, runner.block_io, options, roots[None], text, tiers)
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
    speculator, drafting = make_speculator(
        OpenedRunner(parts, plan, runner), text, options
    )
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


def _step_target(options: EngineOptions) -> float | None:
    """A GPU needs chunks of some size to be fast at all.

    On a CPU a step may grow with the decode step beside it.
    """
    if options.step_target_ms is not None:
        return options.step_target_ms / 1000
    return None if _is_on_cpu() else _GPU_STEP_TARGET_S
