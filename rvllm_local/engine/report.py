"""What a finished sequence's report says, worked out from its timings."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from rvllm_local.engine.sequence import Sequence
from rvllm_local.types import FinishReason, RequestReport, RequestStatus


def report(sequence: Sequence, reason: FinishReason, now: float) -> RequestReport:
    """The report of a sequence that ends at `now` (monotonic seconds)."""
    timings, request = sequence.timings, sequence.request
    gaps = sorted(
        b - a
        for a, b in zip(timings.token_times, timings.token_times[1:], strict=False)
    )
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
        ttft_s=timings.token_times[0] - timings.arrived
        if timings.token_times
        else None,
        total_s=now - timings.arrived,
        itl_p50_s=percentile(gaps, 0.50),
        itl_p95_s=percentile(gaps, 0.95),
        itl_p99_s=percentile(gaps, 0.99),
        itl_max_s=gaps[-1] if gaps else None,
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
    """The smallest value that at least `share` of the ordered values do not exceed (nearest rank)."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _state(sequence: Sequence) -> str:
    if sequence.swapped is not None:
        return "swapped"
    if sequence.timings.admitted is None:
        return "waiting"
    return "decode" if sequence.is_decoding else "prefill"
