"""The core of a model that reads texts and writes none: vectors, or scores of pairs.

A step reads one batch of texts of about one length. Its size follows the measured pace.
Beside streams of other models on the same device it takes a fraction of the time
between two of their tokens, and then rests for that time: no token waits for more than
one step. Where the kernel gives its thread only what streams leave, it does neither. A
text's vector does not depend on the others of its batch, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

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
_FEWEST_TOKENS, _MOST_TOKENS = 256, 16_384
_STEP_S = 0.03
_SHARE = 0.15  # of the time between a stream's tokens, for a step beside it
_MOST_REST_S = 0.1  # commands wait as long
_ROUND = 8  # widths are multiples of it: fewer shapes, and little padding

# Vectors of token ids `[rows, tokens]`, of rows' lengths, and of the kind of each token.
Reader = Callable[[mx.array, mx.array, mx.array], mx.array]
_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A text that was not read yet."""

    request: Request
    sink: EventSink
    since: float  # monotonic seconds

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_token_ids)


class PooledCore:
    """Reads texts in batches for one model; see `engine.core_contract`."""

    def __init__(
        self,
        read: Reader,
        limits: EngineLimits,
        memory: Mapping[str, int],
        weight_form: str,
        is_paced: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`memory` are the plan's lines in bytes. `is_paced`: streams wait for steps."""
        self._read = read
        self._memory = dict(memory)
        self._weight_form = weight_form
        self._is_paced = is_paced
        # In the order in which they came.
        self._waiting: dict[_Key, _Waiting] = {}
        self._tokens_per_s = _FIRST_TOKENS / _STEP_S
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
        key = (request.request_id, request.index)
        if key in self._waiting:
            raise ParameterError(
                "request_id",
                "a request with this id is already open; give it another id",
            )
        self._waiting[key] = _Waiting(request, sink, time.monotonic())

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
        for row in waiting:
            row.sink(_closing(row, FinishReason.ERROR, message, kind))

    def step(self) -> None:
        """Read one batch, and send its vectors."""
        batch = self._next_batch()
        began = self._clock()
        vectors = self._vectors(batch)
        self._record(batch, self._clock() - began)
        self.num_steps += 1
        for row, vector in zip(batch, vectors, strict=True):
            # Whoever heard of another text's vector may have cancelled this one.
            key = (row.request.request_id, row.request.index)
            if self._waiting.pop(key, None) is not None:
                row.sink(_read(row, vector))
        gap_s = self._gap_s(batch[0])
        if self._waiting and gap_s:
            self._sleep(min(gap_s, _MOST_REST_S))

    def _gap_s(self, row: _Waiting) -> float:
        """The time between the tokens of streams that wait for a step; 0 for none."""
        return row.request.beside_s if self._is_paced else 0.0

    def _next_batch(self) -> list[_Waiting]:
        """The text that waits longest, and those of about its length."""
        seen = list(islice(self._waiting.values(), _SEEN))
        first = seen[0]
        length = first.num_tokens
        most_tokens = self._most_tokens(self._gap_s(first))
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
        """Tokens that a step takes at the pace so far, padding included."""
        if beside_s:
            return min(int(self._tokens_per_s * beside_s * _SHARE), _MOST_TOKENS)
        fitting = int(self._tokens_per_s * _STEP_S)
        return min(max(fitting, _FEWEST_TOKENS), _MOST_TOKENS)

    def _vectors(self, batch: list[_Waiting]) -> npt.NDArray[np.float32]:
        width = max(_rounded(row.num_tokens) for row in batch)
        width = min(width, self.limits.context_length)
        tokens = np.zeros((len(batch), width), dtype=np.int32)
        kinds = np.zeros_like(tokens)
        lengths = np.empty(len(batch), dtype=np.int32)
        for index, row in enumerate(batch):
            count = row.num_tokens
            tokens[index, :count] = row.request.prompt_token_ids
            if row.request.second_at:
                kinds[index, row.request.second_at : count] = 1
            lengths[index] = count
        read = self._read(mx.array(tokens), mx.array(lengths), mx.array(kinds))
        return np.array(read.astype(mx.float32))

    def _record(self, batch: list[_Waiting], seconds: float) -> None:
        """Measure the pace."""
        num_tokens = len(batch) * max(_rounded(row.num_tokens) for row in batch)
        self._tokens_read += sum(row.num_tokens for row in batch)
        # Half of the way: one slow step says little.
        self._tokens_per_s += num_tokens / max(seconds, 1e-6)
        self._tokens_per_s /= 2

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
