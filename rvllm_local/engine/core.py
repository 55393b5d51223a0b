"""The engine's core: sequences in, one `step()` at a time, events out.

Owned and called by exactly one thread. Holds no queue to other threads and no network; see `engine.loop`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import mlx.core as mx

from rvllm_local.engine.detokenizer import StreamingDetokenizer, TextDecoder
from rvllm_local.engine.pace import Pace
from rvllm_local.engine.runner import DecodeRow, ModelRunner
from rvllm_local.engine.sampler import RowSampling, SampledTokens, SamplingBatch, sample
from rvllm_local.engine.scheduler import PrefillChunk, Scheduler
from rvllm_local.engine.sequence import EventSink, Sequence
from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.memory.tables import KVTables
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    FinishReason,
    Request,
    RequestReport,
    StreamEvent,
    TokenLogprob,
)

_REPORTS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request must respect; fixed once the engine is up, so any thread may read it."""

    vocab_size: int
    context_length: int
    arena_tokens: int  # the longest sequence that the KV arenas can ever hold

    def check(self, request: Request) -> int:
        """Return the most tokens, prompt and output, of this request; raise if it can never be served."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise ParameterError("prompt", "the prompt is empty; give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise ParameterError("prompt", f"token id {wrong} is outside the vocabulary of {self.vocab_size}")
        wrong = next((token for token in params.logit_bias if token >= self.vocab_size), None)
        if wrong is not None:
            raise ParameterError("logit_bias", f"token id {wrong} is outside the vocabulary of {self.vocab_size}")
        if len(prompt) >= self.context_length:
            raise ContextOverflowError(
                "prompt",
                f"the prompt has {len(prompt)} tokens, and the context of {self.context_length} leaves no room for an "
                "answer; shorten it",
            )
        total = min(len(prompt) + params.max_tokens, self.context_length)
        if total > self.arena_tokens:
            raise ContextOverflowError(
                "max_tokens",
                f"prompt and max_tokens come to {total} tokens, and the KV arena holds {self.arena_tokens}; "
                "ask for less or raise kv_memory",
            )
        return total


class EngineCore:
    """Schedules, runs, samples and emits for one model."""

    def __init__(
        self,
        runner: ModelRunner,
        kv: KVTables,
        scheduler: Scheduler,
        pace: Pace,
        limits: EngineLimits,
        text: TextDecoder,
        eos_token_ids: Rows[int],
    ) -> None:
        self._runner = runner
        self._kv = kv
        self._scheduler = scheduler
        self._pace = pace
        self._text = text
        self._eos = frozenset(eos_token_ids)
        self._reports: deque[RequestReport] = deque(maxlen=_REPORTS_KEPT)
        self._open: dict[tuple[str, int], Sequence] = {}
        self.limits = limits
        self.num_steps = 0
        self.generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: Request, sink: EventSink) -> None:
        """Queue a request. Raises `ParameterError` if it can never be served."""
        max_total = self.limits.check(request)
        detokenizer = StreamingDetokenizer(self._text, request.params.stop_strings)
        sequence = Sequence(request, max_total, self._kv.new_sequence(), detokenizer, sink)
        self._open[(request.request_id, request.index)] = sequence
        self._scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """End every choice of a request now; its blocks are free before the next step."""
        for sequence in [row for key, row in self._open.items() if key[0] == request_id]:
            self._end(sequence, _last(sequence, FinishReason.CANCELLED))

    def fail_all(self, message: str) -> None:
        """End every open request with an error."""
        for sequence in list(self._open.values()):
            self._end(sequence, _last(sequence, FinishReason.ERROR, message))

    def step(self) -> None:
        """Schedule, run, emit, commit: one decode token for each running row, and a bounded piece of prefill."""
        plan = self._scheduler.schedule(self._pace.prefill_tokens(self._scheduler.running))
        for chunk in plan.prefills:
            self._prefill(chunk)
        if plan.decodes:
            self._emit(plan.decodes, self._decode(plan.decodes))
        self.num_steps += 1

    def stats(self) -> dict[str, int | float | str]:
        """Counters and gauges, as named in the Python API."""
        return {
            "blocks_total": self._kv.blocks_total,
            "blocks_free": self._kv.blocks_free,
            "blocks_shared": self._kv.blocks_shared,
            "blocks_peak": self._kv.blocks_peak,
            "requests_running": len(self._scheduler.running),
            "requests_waiting": len(self._scheduler.waiting),
            "prefix_hit_tokens": 0,
            "preemptions": 0,
            "steps": self.num_steps,
            "generated_tokens": self.generated_tokens,
            "attention_backend": self._runner.backend_name,
            "kernel_dispatches": self._runner.num_dispatches,
        }

    def snapshot(self) -> EngineSnapshot:
        """The engine at work, for people."""
        total, free = self._kv.blocks_total, self._kv.blocks_free
        blocks = BlockCounts(total, free, total - free, self._kv.blocks_shared, 0, 0)
        return EngineSnapshot(blocks, "", (), self.stats(), {})

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """The reports of a finished request's choices."""
        return tuple(report for report in self._reports if report.request_id == request_id)

    def _prefill(self, chunk: PrefillChunk) -> None:
        sequence, start = chunk.sequence, chunk.sequence.num_computed
        began = time.perf_counter()
        self._runner.prefill(sequence.tables, start, sequence.token_ids[start : start + chunk.num_tokens])
        self._pace.record(chunk.num_tokens, time.perf_counter() - began)
        self._scheduler.advance(sequence, chunk.num_tokens)

    def _decode(self, sequences: Rows[Sequence]) -> SampledTokens:
        rows = [DecodeRow(row.tables, row.num_computed, row.token_ids[-1]) for row in sequences]
        logits = self._runner.decode(rows)
        batch = SamplingBatch.build([_sampling(row) for row in sequences], logits.shape[-1])
        sampled = sample(logits, batch)
        mx.eval([part for part in (sampled.tokens, sampled.chosen_logprobs, sampled.top_ids) if part is not None])
        return sampled

    def _emit(self, sequences: Rows[Sequence], sampled: SampledTokens) -> None:
        tokens: list[int] = sampled.tokens.tolist()  # type: ignore[assignment]
        logprobs = _logprobs(sampled, [row.request.params.logprobs for row in sequences], tokens)
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            self._scheduler.advance(sequence, 1)
            self._commit(sequence, token, logprob)

    def _commit(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        """Append one token, send its text, and end the sequence if this was its last."""
        sequence.token_ids.append(token)
        self.generated_tokens += 1
        text, reason = "", None
        if token in self._eos and not sequence.request.params.ignore_eos:
            reason = FinishReason.STOP
        else:
            text = sequence.detokenizer.push(token)
            if sequence.detokenizer.stopped:
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
            sequence.cached_tokens,
        )
        if reason is None:
            sequence.sink(event)
        else:
            self._end(sequence, event)

    def _end(self, sequence: Sequence, event: StreamEvent) -> None:
        del self._open[(sequence.request.request_id, sequence.request.index)]
        self._scheduler.finish(sequence)
        sequence.sink(event)


def _sampling(sequence: Sequence) -> RowSampling:
    return RowSampling(
        sequence.request.params,
        sequence.request.seed,
        len(sequence.token_ids),
        sequence.request.prompt_token_ids,
        sequence.output_token_ids if sequence.request.params.has_penalties else (),
    )


def _logprobs(sampled: SampledTokens, wanted: Rows[int | None], tokens: Rows[int]) -> list[TokenLogprob | None]:
    if sampled.chosen_logprobs is None:
        return [None] * len(tokens)
    chosen: list[float] = sampled.chosen_logprobs.tolist()  # type: ignore[assignment]
    ids: list[list[int]] = [[]] * len(tokens) if sampled.top_ids is None else sampled.top_ids.tolist()  # type: ignore[assignment]
    tops: list[list[float]] = [[]] * len(tokens)
    if sampled.top_logprobs is not None:
        tops = sampled.top_logprobs.tolist()  # type: ignore[assignment]
    return [
        None if count is None else TokenLogprob(token, value, tuple(zip(row[:count], top[:count], strict=True)))
        for count, token, value, row, top in zip(wanted, tokens, chosen, ids, tops, strict=True)
    ]


def _last(sequence: Sequence, reason: FinishReason, error: str | None = None) -> StreamEvent:
    """The closing event of a sequence that ends between steps."""
    return StreamEvent(
        sequence.detokenizer.finish(), (), reason, None, sequence.request.index, sequence.cached_tokens, error
    )
