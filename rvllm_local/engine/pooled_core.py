"""The core of a model that reads texts and writes none: vectors, or scores of pairs.

A batch has texts of about one length. Its size follows the measured pace, and a step
reads one. Beside streams of other models on the same device a step goes on by as many
layers as take a fraction of the time between two of their tokens, and then rests for that
time: no token waits for more than one step. A text's vector does not depend on the others
of its batch, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import EngineClosedError, ParameterError
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    RequestStatus,
    StreamEvent,
)

# Texts that a batch is chosen from: more would be sorted at each step.
_SEEN = 1024
# Tokens of a batch, padding included. The first is small: its pace is not known yet.
_FIRST_TOKENS = 512
_FIRST_BESIDE = 1  # beside streams: one text
_FEWEST_TOKENS, _MOST_TOKENS = 256, 16_384
_STEP_S = 0.03
_SHARE = 0.15  # of the time between a stream's tokens, for a step beside it
_MOST_REST_S = 0.1  # commands wait as long
_ROUND = 8  # widths are multiples of it: fewer shapes, and little padding

_Key = tuple[str, int]


class Reader(Protocol):
    """A model: vectors of token ids `[rows, tokens]`, rows' lengths, and tokens' kinds."""

    @property
    def num_pieces(self) -> int:
        """Pieces of about one size that `in_pieces` stops between."""

    def __call__(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> mx.array:
        """All at once."""

    def in_pieces(
        self, tokens: mx.array, lengths: mx.array, kinds: mx.array
    ) -> Iterator[mx.array | None]:
        """None between two pieces, and the vectors at the end."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A text that was not read yet."""

    request: Request
    sink: EventSink
    since: float  # monotonic seconds

    @property
    def key(self) -> _Key:
        return self.request.request_id, self.request.index

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_token_ids)


@dataclass(slots=True)
class _Batch:
    """Texts that are read together."""

    rows: list[_Waiting]
    num_tokens: int  # padding included
    beside_s: float
    pieces: Iterator[mx.array | None]
    seconds: float = 0.0  # read so far

    def read_on(self, clock: Callable[[], float]) -> mx.array | None:
        """Go on for this step's time; the vectors, if that was the end."""
        began = clock()
        vectors = None
        for number, result in enumerate(self.pieces, 1):
            vectors = result
            elapsed = clock() - began
            # One piece more would take too long.
            if elapsed * (number + 1) / number > self.beside_s * _SHARE:
                break
        self.seconds += clock() - began
        return vectors


class PooledCore:
    """Reads texts in batches for one model; see `engine.core_contract`."""

    def __init__(
        self,
        model: Reader,
        limits: EngineLimits,
        memory: Mapping[str, int],
        weight_form: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`memory` are the plan's lines in bytes."""
        self._model = model
        self._memory = dict(memory)
        self._weight_form = weight_form
        # In the order in which they came.
        self._waiting: dict[_Key, _Waiting] = {}
        self._batch: _Batch | None = None
        self._tokens_per_s: float | None = None
        self._clock, self._sleep = clock, sleep
        self._tokens_read = 0
        self.limits = limits
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def has_idle_work(self) -> bool:
        return False

    def idle(self) -> None:
        """There is nothing that could wait."""

    def add(
        self,
        request: Request,
        sink: EventSink,
        matcher: object | None = None,
    ) -> None:
        """Queue a text. Raises `ParameterError` if one of the same id is open."""
        waiting = _Waiting(request, sink, time.monotonic())
        if waiting.key in self._waiting:
            raise ParameterError(
                "request_id",
                "a request with this id is already open; give it another id",
            )
        self._waiting[waiting.key] = waiting

    def cancel(self, request_id: str) -> None:
        """Read none of a request's texts any more."""
        for key, waiting in list(self._waiting.items()):
            if key[0] == request_id:
                del self._waiting[key]
                waiting.sink(_closing(waiting, FinishReason.CANCELLED))

    def fail_all(self, message: str) -> None:
        """End every open request with an error."""
        self._end_all(message, None)

    def close(self, message: str) -> None:
        """End every open request, since the engine closes."""
        self._end_all(message, EngineClosedError.__name__)

    def _end_all(self, message: str, kind: str | None) -> None:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._batch = None
        for row in waiting:
            row.sink(_closing(row, FinishReason.ERROR, message, kind))

    def step(self) -> None:
        """Read a batch or a part of it, and send the vectors of one that is read."""
        batch = self._batch
        if batch is None or not any(self._is_open(row) for row in batch.rows):
            batch = self._begin(self._next_rows())
        self._batch = batch
        vectors = batch.read_on(self._clock)
        self.num_steps += 1
        if vectors is not None:
            self._batch = None
            self._record(batch)
            self._send(batch.rows, np.array(vectors.astype(mx.float32)))
        if self._waiting and batch.beside_s:
            self._sleep(min(batch.beside_s, _MOST_REST_S))

    def _is_open(self, row: _Waiting) -> bool:
        """Whether nobody cancelled it. Another request may have its id since."""
        return self._waiting.get(row.key) is row

    def _send(self, rows: list[_Waiting], vectors: npt.NDArray[np.float32]) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            # Whoever heard of another text's vector may have cancelled this one.
            if self._is_open(row):
                del self._waiting[row.key]
                row.sink(_read(row, vector))

    def _next_rows(self) -> list[_Waiting]:
        """The text that waits longest, and those of about its length."""
        seen = list(islice(self._waiting.values(), _SEEN))
        first = seen[0]
        length = first.num_tokens
        most_tokens = self._most_tokens(first.request.beside_s)
        seen.sort(key=lambda row: abs(row.num_tokens - length))
        batch: list[_Waiting] = []
        width = 0
        for row in seen:
            wider = max(width, _rounded(row.num_tokens))
            if batch and wider * (len(batch) + 1) > most_tokens:
                break
            batch.append(row)
            width = wider
        if first not in batch:
            batch[-1] = first
        return batch

    def _most_tokens(self, beside_s: float) -> int:
        """Tokens of a batch at the pace so far, padding included."""
        if self._tokens_per_s is None:
            return _FIRST_BESIDE if beside_s else _FIRST_TOKENS
        if beside_s:
            seconds = beside_s * _SHARE * self._model.num_pieces
            return min(int(self._tokens_per_s * seconds), _MOST_TOKENS)
        fitting = int(self._tokens_per_s * _STEP_S)
        return min(max(fitting, _FEWEST_TOKENS), _MOST_TOKENS)

    def _begin(self, rows: list[_Waiting]) -> _Batch:
        width = max(_rounded(row.num_tokens) for row in rows)
        width = min(width, self.limits.context_length)
        tokens = np.zeros((len(rows), width), dtype=np.int32)
        kinds = np.zeros_like(tokens)
        lengths = np.empty(len(rows), dtype=np.int32)
        for index, row in enumerate(rows):
            count = row.num_tokens
            tokens[index, :count] = row.request.prompt_token_ids
            if row.request.second_at:
                kinds[index, row.request.second_at : count] = 1
            lengths[index] = count
        inputs = (mx.array(tokens), mx.array(lengths), mx.array(kinds))
        beside_s = rows[0].request.beside_s
        if beside_s:
            pieces = self._model.in_pieces(*inputs)
        else:
            pieces = _whole(self._model, *inputs)
        return _Batch(rows, tokens.size, beside_s, pieces)

    def _record(self, batch: _Batch) -> None:
        """Measure the pace."""
        self._tokens_read += sum(row.num_tokens for row in batch.rows)
        pace = batch.num_tokens / max(batch.seconds, 1e-6)
        if self._tokens_per_s is None:
            self._tokens_per_s = pace
        # Half of the way: one slow batch says little.
        self._tokens_per_s = (self._tokens_per_s + pace) / 2

    def stats(self) -> dict[str, int | float | str]:
        """Counters and gauges, under the names of a core that writes."""
        return {
            "requests_running": 0,
            "requests_waiting": len(self._waiting),
            "steps": self.num_steps,
            "tokens_read": self._tokens_read,
            "weights": self._weight_form,
        }

    def snapshot(self) -> EngineSnapshot:
        """The texts that wait; there are no blocks."""
        now = time.monotonic()
        statuses = []
        for row in self._waiting.values():
            statuses.append(_status(row, now))
        blocks = BlockCounts(0, 0, 0, 0, 0, 0)
        return EngineSnapshot(blocks, "", tuple(statuses), self.stats(), self._memory)

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """There is nothing to tell of a text that was read."""
        return ()


def _whole(
    model: Reader, tokens: mx.array, lengths: mx.array, kinds: mx.array
) -> Iterator[mx.array | None]:
    """All in one piece."""
    vectors = model(tokens, lengths, kinds)
    mx.eval(vectors)
    yield vectors


def _rounded(count: int) -> int:
    return -(-count // _ROUND) * _ROUND


def _read(row: _Waiting, vector: npt.NDArray[np.float32]) -> StreamEvent:
    return StreamEvent(
        "",
        (),
        FinishReason.STOP,
        index=row.request.index,
        vector=vector.astype("<f4").tobytes(),
    )


def _closing(
    row: _Waiting,
    reason: FinishReason,
    message: str | None = None,
    kind: str | None = None,
) -> StreamEvent:
    return StreamEvent(
        "", (), reason, index=row.request.index, error=message, error_kind=kind
    )


def _status(row: _Waiting, now: float) -> RequestStatus:
    request = row.request
    return RequestStatus(
        request_id=request.request_id,
        index=request.index,
        state="waiting",
        priority=request.priority,
        prompt_tokens=row.num_tokens,
        computed_tokens=0,
        output_tokens=0,
        cached_tokens=0,
        blocks=0,
        age_s=now - row.since,
    )
