"""Reports of the engine: its counters, a picture of it at work, its requests."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import pairwise

from rvllm_local.engine.kv_cache import KVCacheManager
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.sequence import Sequence
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.memory.tables import KVTables
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    FinishReason,
    RequestReport,
    RequestStatus,
)


@dataclass(frozen=True, slots=True)
class CoreParts:
    """The parts that a core runs, and whose counters it reports.

    Without a `speculator` nothing is drafted; `drafting` says what drafts, or why
    nothing does.
    """

    kv: KVTables
    kv_cache: KVCacheManager
    scheduler: Scheduler
    runner: ModelRunner
    speculator: Speculator | None = None
    drafting: str = "off"


def stats(
    parts: CoreParts,
    num_steps: int,
    generated_tokens: int,
) -> dict[str, int | float | str]:
    """Counters and gauges, as named in the Python API.

    `blocks_free` counts cached blocks as well: they can be had.
    """
    kv = parts.kv
    kv_cache = parts.kv_cache
    scheduler = parts.scheduler
    speculator = parts.speculator
    return {
        "blocks_total": kv.blocks_total,
        "blocks_free": kv.blocks_free,
        "blocks_cached": kv.blocks_cached,
        "blocks_shared": kv.blocks_shared,
        "blocks_peak": kv.blocks_peak,
        "blocks_swapped": kv_cache.num_swapped_blocks,
        "requests_running": len(scheduler.running),
        "requests_waiting": len(scheduler.waiting),
        "requests_swapped": len(scheduler.swapped),
        "prefix_hit_tokens": kv_cache.hit_tokens,
        "preemptions": scheduler.num_preemptions,
        "steps": num_steps,
        "generated_tokens": generated_tokens,
        "draft_tokens_accepted": speculator.accepted if speculator else 0,
        "draft_tokens_rejected": speculator.rejected if speculator else 0,
        "weights": parts.runner.weight_form,
        "attention_backend": parts.runner.backend_name,
        "kernel_dispatches": parts.runner.num_dispatches,
    }


def snapshot(
    parts: CoreParts,
    sequences: Iterable[Sequence],
    counters: Mapping[str, int | float | str],
    memory: Mapping[str, int],
) -> EngineSnapshot:
    """The engine at work, for people.

    `memory` are the memory plan's lines, in bytes.
    """
    kv, now = parts.kv, time.monotonic()
    blocks = BlockCounts(
        total=kv.blocks_total,
        free=kv.blocks_free - kv.blocks_cached,
        used=kv.blocks_total - kv.blocks_free,
        shared=kv.blocks_shared,
        cached=kv.blocks_cached,
        spilled=parts.kv_cache.num_spilled_blocks,
    )
    block_map = "".join(pool.block_states() for pool in kv.pools)
    requests = tuple(status(sequence, now) for sequence in sequences)
    return EngineSnapshot(blocks, block_map, requests, counters, memory)


def report(
    parts: CoreParts,
    sequence: Sequence,
    reason: FinishReason,
    now: float,
) -> RequestReport:
    """The report of a sequence that ends at `now` (monotonic seconds)."""
    timings, request = sequence.timings, sequence.request
    times = timings.token_times
    gaps = sorted(after - before for before, after in pairwise(times))
    return RequestReport(
        request_id=request.request_id,
        index=request.index,
        finish_reason=reason,
        prompt_tokens=sequence.num_prompt,
        output_tokens=len(sequence.token_ids) - sequence.num_prompt,
        cached_tokens=timings.cached_tokens,
        cached_from_disk=timings.cached_from_disk,
        miss=timings.miss,
        prefill_chunks=timings.prefill_chunks,
        preemptions=timings.preemptions,
        blocks_peak=timings.blocks_peak,
        queue_s=(timings.admitted or now) - timings.arrived,
        ttft_s=times[0] - timings.arrived if times else None,
        total_s=now - timings.arrived,
        itl_p50_s=percentile(gaps, 0.50),
        itl_p95_s=percentile(gaps, 0.95),
        itl_p99_s=percentile(gaps, 0.99),
        itl_max_s=gaps[-1] if gaps else None,
        drafting=parts.drafting,
        accepted_drafts=sequence.drafts.accepted if sequence.drafts else 0,
        rejected_drafts=sequence.drafts.rejected if sequence.drafts else 0,
    )


def status(sequence: Sequence, now: float) -> RequestStatus:
    """One open sequence, for people."""
    return RequestStatus(
        request_id=sequence.request.request_id,
        index=sequence.request.index,
        state=_state(sequence),
        priority=sequence.request.priority,
        prompt_tokens=sequence.num_prompt,
        computed_tokens=sequence.num_computed,
        output_tokens=len(sequence.token_ids) - sequence.num_prompt,
        cached_tokens=sequence.timings.cached_tokens,
        blocks=sequence.tables.num_blocks,
        age_s=now - sequence.timings.arrived,
    )


def percentile(ordered: Rows[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed.

    That is the nearest rank; None without values.
    """
    if not ordered:
        return None
    rank = math.ceil(share * len(ordered))
    return ordered[max(rank, 1) - 1]


def _state(sequence: Sequence) -> str:
    if sequence.swapped is not None:
        return "swapped"
    if sequence.timings.admitted is None:
        return "waiting"
    return "decode" if sequence.is_decoding else "prefill"
