"""The engine's core: sequences in, one `step()` at a time, events out.

One thread owns it and calls it. It holds no queue to other threads; see `engine.loop`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rvllm_local.engine.commit import Committer, RowEvent
from rvllm_local.engine.detokenizer import (
    StreamingDetokenizer,
    TextDecoder,
    Vocabulary,
)
from rvllm_local.engine.drafting import Drafting
from rvllm_local.engine.flight import (
    Flight,
    decode_rows,
    row_samplings,
    token_chunk,
)
from rvllm_local.engine.grammar_masks import GrammarMasks
from rvllm_local.engine.identity import EngineIdentity
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.output import (
    closing_event,
    error_event,
    scores_event,
)
from rvllm_local.engine.prefill import Prefiller
from rvllm_local.engine.prefill_budget import PrefillBudget
from rvllm_local.engine.report import CoreParts, report, snapshot, stats
from rvllm_local.engine.scheduler import PrefillChunk, StepPlan
from rvllm_local.engine.sequence import Sequence, SequenceTimings
from rvllm_local.errors import ParameterError
from rvllm_local.memory.prefix import KeyChain
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    StreamEvent,
)

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher

_REPORTS_KEPT = 1000
# A decode call takes along so many prompt tokens; more go in calls of their own.
_MOST_MIXED = 32


class EngineCore:
    """Schedules, runs, samples and emits for one model."""

    def __init__(
        self,
        parts: CoreParts,
        budget: PrefillBudget,
        limits: EngineLimits,
        text: Vocabulary,
        identity: EngineIdentity,
        reserve_memory: Callable[[], None] | None = None,
    ) -> None:
        """`reserve_memory` takes the planned memory, while the engine idles."""
        self._parts = parts
        self._runner = parts.runner
        self._kv = parts.kv
        self._kv_cache = parts.kv_cache
        self._scheduler = parts.scheduler
        self._budget = budget
        self._text = text
        self._identity = identity
        self._reserve_memory = reserve_memory
        self._prefiller = Prefiller(parts.runner, parts.kv, parts.kv_cache, budget)
        self._grammars = GrammarMasks(parts.runner.vocab_size, self._fail)
        self._drafting = Drafting(
            parts.speculator, parts.scheduler, overlaps=parts.runner.overlaps
        )
        self._committer = Committer(
            parts.kv_cache,
            self._prefiller,
            self._grammars,
            self._drafting,
            identity.eos_token_ids,
            has_windows=parts.kv.has_windows,
        )
        self._flight: Flight | None = None
        self._reports: deque[RequestReport] = deque(maxlen=_REPORTS_KEPT)
        self._open: dict[tuple[str, int], Sequence] = {}
        self._scored: dict[tuple[str, int], Sequence] = {}
        self._arrivals = 0
        self.limits = limits
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._flight is not None

    @property
    def has_idle_work(self) -> bool:
        """There is memory to take, or a cached block to write to disk."""
        return self._reserve_memory is not None or self._kv_cache.has_idle_work

    def idle(self) -> None:
        """Do a little of the idle work."""
        if self._reserve_memory is not None:
            self._reserve_memory_now()
        else:
            self._kv_cache.idle()

    def _reserve_memory_now(self) -> None:
        reserve_memory = self._reserve_memory
        self._reserve_memory = None
        if reserve_memory is not None:
            reserve_memory()

    def add(
        self,
        request: Request,
        sink: EventSink,
        matcher: Matcher | None = None,
    ) -> None:
        """Queue a request that `limits.check` has accepted.

        One with a grammar brings its `matcher`. Raises `ParameterError` if it does not,
        or if a request of the same id is open.
        """
        if self._arrivals:
            self._reserve_memory_now()
        if (request.grammar is None) != (matcher is None):
            raise ParameterError(
                "response_format",
                "a request with a grammar needs a compiled one, and no other does",
            )
        key = (request.request_id, request.index)
        if key in self._open:
            raise ParameterError(
                "request_id",
                "a request with this id is already open; give it another id",
            )
        sequence = self._new_sequence(request, sink)
        sequence.matcher = matcher
        self._arrivals += 1
        self._open[key] = sequence
        if sequence.scores is not None:
            self._scored[key] = sequence
        self._scheduler.add(sequence)

    def _new_sequence(self, request: Request, sink: EventSink) -> Sequence:
        params = request.params
        decoder: TextDecoder = self._text
        if request.kept_special:
            decoder = self._text.keeping(request.kept_special)
        root = self._identity.roots[request.adapter]
        sequence = Sequence(
            request=request,
            max_total=self.limits.max_total(request),
            tables=self._kv.new_sequence(),
            detokenizer=StreamingDetokenizer(
                decoder, params.stop_strings, params.min_tokens
            ),
            sink=sink,
            keys=KeyChain(root),
            timings=SequenceTimings(time.monotonic()),
            order=self._arrivals,
            adapter=self._identity.number_of(request.adapter),
        )
        ends = self._identity.eos_token_ids
        sequence.prepare_sampling(self._runner.vocab_size, ends)
        return sequence

    def cancel(self, request_id: str) -> None:
        """End every choice of a request now.

        Its blocks are free before the next step, or one later if a step is in flight.
        """
        for key, sequence in list(self._open.items()):
            if key[0] == request_id:
                self._end(sequence, closing_event(sequence, FinishReason.CANCELLED))

    def _fail(self, sequence: Sequence, error: ParameterError) -> None:
        """End a choice whose request turned out to be at fault."""
        self._end(sequence, error_event(sequence, error))

    def fail_all(self, message: str) -> None:
        """End every open request with an error, and trust no KV computed before."""
        flight = self._flight
        self._flight = None
        if flight is not None:
            for sequence in flight.rows:
                sequence.in_flight = 0
                self._kv_cache.free(sequence)
        for sequence in list(self._open.values()):
            sequence.in_flight = 0
            event = closing_event(sequence, FinishReason.ERROR, message)
            self._end(sequence, event)
        self._kv_cache.forget_prefixes()

    def close(self, message: str) -> None:
        """End open requests with an error and put away what is cached."""
        self._land()
        for sequence in list(self._open.values()):
            event = closing_event(
                sequence, FinishReason.ERROR, message, "EngineClosedError"
            )
            self._end(sequence, event)
        self._kv_cache.close()

    def step(self) -> None:
        """One decode token for each running row, and a bounded piece of prefill.

        Schedule, run, commit, emit. Where the back end allows it, the decode step that
        is launched here runs while the host commits and emits the one before.
        """
        began = time.monotonic()
        if self._flight is not None and not self._may_overlap():
            self._land()
        plan = self._schedule()
        if plan.is_empty and self._flight is None:
            self._kv_cache.wait_for_disk()
        launched = self._run(plan)
        self._land()
        self._flight = launched
        if not self._runner.overlaps:
            self._land()
        if launched is not None:
            self._record_time(plan, launched, began)
        self.num_steps += 1

    def _may_overlap(self) -> bool:
        """A step may be launched before the last one was read.

        Not if something has to be decided in between: who makes room, or a token that
        only the host can work out.
        """
        if not self._scheduler.is_roomy:
            return False
        running = self._scheduler.running
        needs_host = [row.needs_host for row in running]
        if any(needs_host):
            return False
        assert self._flight is not None
        return not self._drafting.needs_last_step(running, self._flight)

    def _schedule(self) -> StepPlan:
        """Who runs, within the budget of prefill and of reading from disk."""
        scheduler = self._scheduler
        allowed = self._budget.for_step(scheduler.running, len(scheduler.waiting))
        self._kv_cache.begin_step(allowed.seconds)
        return scheduler.schedule(allowed.tokens)

    def _run(self, plan: StepPlan) -> Flight | None:
        """Compute the plan's prompts and launch its decode step, mixed if possible."""
        if self._flight is None:
            self._drafting.choose(plan.decodes)
        rows = self._grammars.allow(plan.decodes)
        if rows and self._mixes(plan.prefills):
            return self._launch(rows, plan.prefills)
        for chunk in plan.prefills:
            self._prefiller.run(chunk)
            self._drafting.note_prefill(chunk.sequence, chunk.num_tokens)
        if self._scored:
            self._emit_scores()
        return self._launch(rows, ()) if rows else None

    def _mixes(self, chunks: tuple[PrefillChunk, ...]) -> bool:
        """The chunks are few tokens, and nobody wants their logits."""
        if not chunks or not self._runner.mixes:
            return False
        num_tokens = 0
        for chunk in chunks:
            if chunk.sequence.scores is not None:
                return False
            num_tokens += chunk.num_tokens
        return num_tokens <= _MOST_MIXED

    def _emit_scores(self) -> None:
        """Send what was scored; end the requests that want nothing else."""
        for sequence in list(self._scored.values()):
            if sequence not in self._scheduler.running:
                continue
            event = scores_event(sequence)
            if event is not None:
                self._send(sequence, event)

    def _launch(
        self, rows: tuple[Sequence, ...], chunks: tuple[PrefillChunk, ...]
    ) -> Flight:
        """Launch one decode step; `chunks` are computed in the same call."""
        launched = time.monotonic()
        self._drafting.note_launch()
        previous = None if self._flight is None else self._flight.sampled.tokens
        sampled = self._runner.sample(
            decode_rows(rows, self._flight),
            row_samplings(rows),
            previous,
            [token_chunk(chunk) for chunk in chunks],
        )
        num_mixed = 0
        for chunk in chunks:
            self._prefiller.account(chunk, launched)
            num_mixed += chunk.num_tokens
        for row in rows:
            row.timings.admitted = row.timings.admitted or launched
            row.num_computed += 1
            row.in_flight += 1
        drafted = tuple([row.drafted for row in rows])
        return Flight(rows, sampled, num_mixed, launched, drafted)

    def _land(self) -> None:
        """Take the tokens of the step in flight, if there is one: commit, then emit."""
        flight = self._flight
        self._flight = None
        if flight is not None:
            events = self._committer.commit(flight)
            self._drafting.record_landing(flight)
            self._emit(events)

    def _emit(self, events: list[RowEvent]) -> None:
        """Send each token's text; end the sequences whose last token it was."""
        for sequence, event in events:
            # Whoever heard of another row's token may have cancelled this one.
            if not sequence.ended:
                self._send(sequence, event)

    def _send(self, sequence: Sequence, event: StreamEvent) -> None:
        """Send an event, and take the sequence out if it is the last one."""
        if event.finish_reason is None:
            sequence.sink(event)
        else:
            self._end(sequence, event)

    def _record_time(
        self,
        plan: StepPlan,
        flight: Flight,
        began: float,
    ) -> None:
        """Tell the budget what this step took, if its parts can be told apart."""
        now = time.monotonic()
        num_tokens = flight.num_tokens
        if flight.num_mixed:
            self._budget.record_mixed(num_tokens, flight.num_mixed, now - began)
            return
        if self._runner.overlaps and plan.prefills:
            return
        began_decode = began if self._runner.overlaps else flight.launched
        self._budget.record_decode(num_tokens, now - began_decode)

    def _end(self, sequence: Sequence, event: StreamEvent) -> None:
        """Take a sequence out.

        Its blocks stay quarantined while a launched step may still write to them.
        """
        assert event.finish_reason is not None
        sequence.ended = True
        key = (sequence.request.request_id, sequence.request.index)
        del self._open[key]
        self._scored.pop(key, None)
        self._scheduler.remove(sequence)
        if sequence.in_flight == 0:
            self._kv_cache.free(sequence)
        now = time.monotonic()
        self._reports.append(report(self._parts, sequence, event.finish_reason, now))
        if sequence.drafts is not None:
            event.accepted_drafts = sequence.drafts.accepted
            event.rejected_drafts = sequence.drafts.rejected
        self._drafting.end(sequence)
        sequence.sink(event)

    def stats(self) -> dict[str, int | float | str]:
        """Counters and gauges, as named in the Python API."""
        return stats(self._parts, self.num_steps, self._committer.num_tokens)

    def snapshot(self) -> EngineSnapshot:
        """The engine at work, for people."""
        memory, open_sequences = self._identity.memory, self._open.values()
        return snapshot(self._parts, open_sequences, self.stats(), memory)

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """The reports of a finished request's choices."""
        return tuple(row for row in self._reports if row.request_id == request_id)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for. For tests."""
        self._kv.check_integrity()
        if not self._open and self._flight is None:
            assert self._kv.blocks_free == self._kv.blocks_total, (
                "blocks are held by nobody"
            )
