"""The engine's core: sequences in, one `step()` at a time, events out.

Owned and called by exactly one thread. Holds no queue to other threads and no network; see `engine.loop`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rvllm_local.attention.geometry import ChunkRows, DecodeRow
from rvllm_local.engine.detokenizer import StreamingDetokenizer, Vocabulary
from rvllm_local.engine.identity import EngineIdentity
from rvllm_local.engine.kv_cache import KVCacheManager
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.prefill_budget import PrefillBudget
from rvllm_local.engine.report import report, status
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.sampler import RowSampling, SampledTokens
from rvllm_local.engine.sampling.token_history import TokenHistory
from rvllm_local.engine.scheduler import PrefillChunk, Scheduler
from rvllm_local.engine.sequence import Sequence, SequenceTimings
from rvllm_local.errors import GrammarError, ParameterError
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.prefix import KeyChain
from rvllm_local.memory.tables import KVTables
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    StreamEvent,
    TokenLogprob,
)

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher

_REPORTS_KEPT = 1000
_MOST_MIXED = (
    32  # prompt tokens that a decode call takes along; more go in calls of their own
)


@dataclass(frozen=True, slots=True)
class Flight:
    """A decode step that was launched: its rows, and their tokens once the device has drawn them."""

    rows: tuple[Sequence, ...]
    sampled: SampledTokens


class EngineCore:
    """Schedules, runs, samples and emits for one model."""

    def __init__(
        self,
        runner: ModelRunner,
        kv: KVTables,
        kv_cache: KVCacheManager,
        scheduler: Scheduler,
        budget: PrefillBudget,
        limits: EngineLimits,
        text: Vocabulary,
        identity: EngineIdentity,
        reserve_memory: Callable[[], None] | None = None,
    ) -> None:
        self._runner = runner
        self._kv = kv
        self._kv_cache = kv_cache
        self._scheduler = scheduler
        self._budget = budget
        self._text = text
        self._identity = identity
        self._reserve_memory = reserve_memory  # what takes the planned memory; the first request does not wait for it
        self._flight: Flight | None = None
        self._reports: deque[RequestReport] = deque(maxlen=_REPORTS_KEPT)
        self._open: dict[tuple[str, int], Sequence] = {}
        self._arrivals = 0
        self.limits = limits
        self.num_steps = 0
        self.generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._flight is not None

    @property
    def has_idle_work(self) -> bool:
        """Something that is best done while nobody waits: taking the planned memory, writing cached blocks to disk."""
        return self._reserve_memory is not None or self._kv_cache.has_idle_work

    def idle(self) -> None:
        """Do a little of the idle work."""
        if self._reserve_memory is not None:
            self._reserve_memory_now()
        else:
            self._kv_cache.idle()

    def add(
        self, request: Request, sink: EventSink, matcher: Matcher | None = None
    ) -> None:
        """Queue a request; one with a grammar brings its `matcher`. Raises `ParameterError` if it can never be served."""
        if self._arrivals:
            self._reserve_memory_now()
        if (request.grammar is None) != (matcher is None):
            raise ParameterError(
                "response_format",
                "a request with a grammar needs a compiled one, and no other does",
            )
        if (request.request_id, request.index) in self._open:
            raise ParameterError(
                "request_id",
                "a request with this id is already open; give it another id",
            )
        text = (
            self._text.keeping(request.kept_special)
            if request.kept_special
            else self._text
        )
        sequence = Sequence(
            request,
            self.limits.check(request),
            self._kv.new_sequence(),
            StreamingDetokenizer(text, request.params.stop_strings),
            sink,
            KeyChain(self._identity.roots[request.adapter]),
            SequenceTimings(time.monotonic()),
            self._arrivals,
            self._identity.number_of(request.adapter),
        )
        sequence.matcher = matcher
        sequence.token_history = TokenHistory.of(
            request.params, request.prompt_token_ids, self._runner.vocab_size
        )
        self._arrivals += 1
        self._open[(request.request_id, request.index)] = sequence
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """End every choice of a request now; its blocks are free before the next step, or one after if one runs."""
        for sequence in [
            row for key, row in self._open.items() if key[0] == request_id
        ]:
            self._end(sequence, _last(sequence, FinishReason.CANCELLED))

    def fail_all(self, message: str) -> None:
        """End every open request with an error, and trust no KV that was computed before."""
        flight, self._flight = self._flight, None
        for sequence in flight.rows if flight is not None else ():
            sequence.in_flight = 0
            self._kv_cache.free(sequence)
        for sequence in list(self._open.values()):
            sequence.in_flight = 0
            self._end(sequence, _last(sequence, FinishReason.ERROR, message))
        self._kv_cache.forget_prefixes()

    def close(self, message: str) -> None:
        """End open requests with an error and put away what is cached."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._retire(flight)
        for sequence in list(self._open.values()):
            self._end(
                sequence,
                replace(
                    _last(sequence, FinishReason.ERROR, message),
                    error_kind="EngineClosedError",
                ),
            )
        self._kv_cache.close()

    def step(self) -> None:
        """Schedule, run, emit, commit: one decode token for each running row, and a bounded piece of prefill.

        Where the back end allows it the decode step that is launched here runs while the host reads the one before.
        """
        began = time.monotonic()
        if self._flight is not None and not self._may_overlap():
            self._land()
        running, num_waiting = self._scheduler.running, len(self._scheduler.waiting)
        self._kv_cache.begin_step(self._budget.seconds(running, num_waiting))
        plan = self._scheduler.schedule(self._budget.tokens(running, num_waiting))
        rows = tuple(
            row for row in plan.decodes if row.matcher is None or self._can_go_on(row)
        )
        chunks = plan.prefills if rows and self._mixes(plan.prefills) else ()
        for chunk in () if chunks else plan.prefills:
            self._prefill(chunk)
        launched = began if self._runner.overlaps else time.monotonic()
        flight = self._launch(rows, chunks) if rows else None
        self._land()
        self._flight = flight
        if not self._runner.overlaps:
            self._land()
        if chunks:
            self._budget.record_mixed(
                len(rows),
                sum(chunk.num_tokens for chunk in chunks),
                time.monotonic() - began,
            )
        elif rows and not (plan.prefills and self._runner.overlaps):
            self._budget.record_decode(len(rows), time.monotonic() - launched)
        self.num_steps += 1

    def stats(self) -> dict[str, int | float | str]:
        """Counters and gauges, as named in the Python API. `blocks_free` counts cached blocks: they can be had."""
        return {
            "blocks_total": self._kv.blocks_total,
            "blocks_free": self._kv.blocks_free,
            "blocks_cached": self._kv.blocks_cached,
            "blocks_shared": self._kv.blocks_shared,
            "blocks_peak": self._kv.blocks_peak,
            "blocks_swapped": self._kv_cache.num_swapped_blocks,
            "requests_running": len(self._scheduler.running),
            "requests_waiting": len(self._scheduler.waiting),
            "requests_swapped": len(self._scheduler.swapped),
            "prefix_hit_tokens": self._kv_cache.hit_tokens,
            "preemptions": self._scheduler.num_preemptions,
            "steps": self.num_steps,
            "generated_tokens": self.generated_tokens,
            "attention_backend": self._runner.backend_name,
            "kernel_dispatches": self._runner.num_dispatches,
        }

    def snapshot(self) -> EngineSnapshot:
        """The engine at work, for people."""
        now, total, free = time.monotonic(), self._kv.blocks_total, self._kv.blocks_free
        cached, store = self._kv.blocks_cached, self._kv_cache.store
        spilled = 0 if store is None else store.stats().blocks
        blocks = BlockCounts(
            total, free - cached, total - free, self._kv.blocks_shared, cached, spilled
        )
        letters = "".join(pool.letters() for pool in self._kv.pools)
        requests = tuple(status(sequence, now) for sequence in self._open.values())
        return EngineSnapshot(
            blocks, letters, requests, self.stats(), self._identity.memory
        )

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """The reports of a finished request's choices."""
        return tuple(found for found in self._reports if found.request_id == request_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for. For tests."""
        self._kv.check_integrity()
        if not self._open and self._flight is None:
            assert self._kv.blocks_free == self._kv.blocks_total, (
                "blocks are held by nobody"
            )

    def _reserve_memory_now(self) -> None:
        reserve_memory, self._reserve_memory = self._reserve_memory, None
        if reserve_memory is not None:
            reserve_memory()

    def _may_overlap(self) -> bool:
        """A step may be launched before the last one was read, unless something has to be decided in between."""
        scheduler = self._scheduler
        return scheduler.is_roomy and not any(
            row.needs_host for row in scheduler.running
        )

    def _mixes(self, chunks: tuple[PrefillChunk, ...]) -> bool:
        return (
            self._runner.mixes
            and 0 < sum(chunk.num_tokens for chunk in chunks) <= _MOST_MIXED
        )

    def _prefill(self, chunk: PrefillChunk) -> None:
        sequence, start = chunk.sequence, chunk.sequence.num_computed
        began = time.monotonic()
        tokens = sequence.token_ids[start : start + chunk.num_tokens]
        self._runner.prefill(sequence.tables, start, tokens, sequence.adapter)
        self._budget.record_prefill(chunk.num_tokens, time.monotonic() - began)
        self._prefilled(chunk, began)

    def _prefilled(self, chunk: PrefillChunk, began: float) -> None:
        sequence = chunk.sequence
        sequence.timings.admitted = sequence.timings.admitted or began
        sequence.num_computed += chunk.num_tokens
        sequence.num_prefilled = sequence.num_computed
        sequence.timings.prefill_chunks += 1
        self._advanced(sequence)

    def _advanced(self, sequence: Sequence) -> None:
        """After more tokens have KV: share full blocks, drop what slid out of the windows."""
        sequence.timings.blocks_peak = max(
            sequence.timings.blocks_peak, sequence.tables.num_blocks
        )
        self._kv_cache.cache_full_blocks(sequence)
        self._kv.trim_windows(
            sequence.tables, sequence.num_computed - sequence.in_flight
        )

    def _can_go_on(self, sequence: Sequence) -> bool:
        """Work out what a grammar allows next; a request whose grammar allows nothing ends alone."""
        assert sequence.matcher is not None
        try:
            sequence.allowed = np.zeros(
                -(-self._runner.vocab_size // 32), dtype=np.int32
            )
            sequence.matcher.mask_into(sequence.allowed)
        except GrammarError as error:
            self._end(sequence, _last(sequence, FinishReason.ERROR, str(error)))
            return False
        return True

    def _launch(
        self, rows: tuple[Sequence, ...], chunks: tuple[PrefillChunk, ...] = ()
    ) -> Flight:
        """Launch one decode step; `chunks` are computed in the same call."""
        previous = self._flight
        places = (
            {}
            if previous is None
            else {id(row): place for place, row in enumerate(previous.rows)}
        )
        inputs = []
        for row in rows:
            source = places.get(id(row)) if row.in_flight else None
            inputs.append(
                DecodeRow(
                    row.tables, row.num_computed, row.token_ids[-1], source, row.adapter
                )
            )
        samplings = None
        if not all(row.is_plain_greedy for row in rows):
            samplings = [_sampling(row) for row in rows]
        now = time.monotonic()
        tokens = None if previous is None else previous.sampled.tokens
        sampled = self._runner.sample(
            inputs, samplings, tokens, [_chunk_rows(chunk) for chunk in chunks]
        )
        for chunk in chunks:
            self._prefilled(chunk, now)
        for row in rows:
            row.timings.admitted = row.timings.admitted or now
            row.num_computed += 1
            row.in_flight += 1
        return Flight(rows, sampled)

    def _land(self) -> None:
        """Read the step in flight, if there is one."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._retire(flight)

    def _retire(self, flight: Flight) -> None:
        """Take a launched step's tokens, and give back the blocks of rows that ended while it ran."""
        tokens: list[int] = flight.sampled.tokens.tolist()  # type: ignore[assignment]
        logprobs = _logprobs(flight, tokens)
        now = time.monotonic()
        for sequence, token, logprob in zip(
            flight.rows, tokens, logprobs, strict=False
        ):
            sequence.in_flight -= 1
            if sequence.ended:
                if sequence.in_flight == 0:
                    self._kv_cache.free(sequence)
                continue
            sequence.timings.token_times.append(now)
            self._commit(sequence, token, logprob)

    def _commit(
        self, sequence: Sequence, token: int, logprob: TokenLogprob | None
    ) -> None:
        """Append one token, send its text, and end the sequence if this was its last."""
        if sequence.matcher is not None:
            try:
                sequence.matcher.advance(token)
            except GrammarError as error:
                self._end(sequence, _last(sequence, FinishReason.ERROR, str(error)))
                return
        sequence.token_ids.append(token)
        if sequence.token_history is not None:
            sequence.token_history.push(token)
        if (
            self._kv.has_windows or len(sequence.token_ids) % BLOCK_TOKENS <= 1
        ):  # a block is full, or was begun
            self._advanced(sequence)
        self.generated_tokens += 1
        text, reason = "", None
        if (
            token in self._identity.eos_token_ids
            and not sequence.request.params.ignore_eos
        ):
            reason = FinishReason.STOP
        else:
            text = sequence.detokenizer.push(token)
            if sequence.detokenizer.stopped or (
                sequence.matcher is not None and sequence.matcher.is_stopped
            ):
                reason = FinishReason.STOP
            elif len(sequence.token_ids) >= sequence.max_total:
                reason = FinishReason.LENGTH
        if reason is not None and not sequence.detokenizer.stopped:
            text += sequence.detokenizer.finish()
        event = StreamEvent(
            text,
            (token,),
            reason,
            (logprob,) if logprob is not None else None,
            sequence.request.index,
            sequence.timings.cached_tokens,
            stop_string=sequence.detokenizer.stop_string,
        )
        if reason is None:
            sequence.sink(event)
        else:
            self._end(sequence, event)

    def _end(self, sequence: Sequence, event: StreamEvent) -> None:
        """Take a sequence out. Its blocks stay quarantined while a launched step may still write to them."""
        assert event.finish_reason is not None
        sequence.ended = True
        del self._open[(sequence.request.request_id, sequence.request.index)]
        self._scheduler.remove(sequence)
        if sequence.in_flight == 0:
            self._kv_cache.free(sequence)
        self._reports.append(report(sequence, event.finish_reason, time.monotonic()))
        sequence.sink(event)


def _chunk_rows(chunk: PrefillChunk) -> ChunkRows:
    sequence, start = chunk.sequence, chunk.sequence.num_computed
    tokens = tuple(sequence.token_ids[start : start + chunk.num_tokens])
    return ChunkRows(sequence.tables, start, tokens, sequence.adapter)


def _sampling(sequence: Sequence) -> RowSampling:
    return RowSampling(
        sequence.request.params,
        sequence.request.seed,
        len(sequence.token_ids) + sequence.in_flight,
        sequence.token_history,
        sequence.allowed,
    )


def _logprobs(flight: Flight, tokens: Rows[int]) -> list[TokenLogprob | None]:
    sampled = flight.sampled
    if sampled.chosen_logprobs is None:
        return [None] * len(tokens)
    wanted = [row.request.params.logprobs for row in flight.rows]
    chosen: list[float] = sampled.chosen_logprobs.tolist()  # type: ignore[assignment]
    ids: list[list[int]] = [[]] * len(tokens)
    if sampled.top_ids is not None:
        ids = sampled.top_ids.tolist()  # type: ignore[assignment]
    tops: list[list[float]] = [[]] * len(tokens)
    if sampled.top_logprobs is not None:
        tops = sampled.top_logprobs.tolist()  # type: ignore[assignment]
    return [
        None
        if count is None
        else TokenLogprob(
            token, value, tuple(zip(row[:count], top[:count], strict=True))
        )
        for count, token, value, row, top in zip(
            wanted, tokens, chosen, ids, tops, strict=True
        )
    ]


def _last(
    sequence: Sequence, reason: FinishReason, error: str | None = None
) -> StreamEvent:
    """The closing event of a sequence that ends between steps."""
    return StreamEvent(
        sequence.detokenizer.finish(),
        (),
        reason,
        None,
        sequence.request.index,
        sequence.timings.cached_tokens,
        error,
    )
