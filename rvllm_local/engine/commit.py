"""Takes the tokens of a step that has run into their sequences.

A row has its next token, and one more for each token that it drafted. A drafted token
is kept if it is the one that was drawn in its place: then the token behind it was drawn
after the right ones, and is taken as well. The KV of the others is only a length that
does not grow: the next step writes over it. A recurrent state is that of the last token
that was kept.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from collections.abc import Sequence as Rows

from rvllm_local.engine.drafting import Drafting
from rvllm_local.engine.flight import Flight
from rvllm_local.engine.grammar_masks import GrammarMasks
from rvllm_local.engine.kv_cache import KVCacheManager
from rvllm_local.engine.output import error_event, token_event
from rvllm_local.engine.prefill import Prefiller
from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.types import StreamEvent, TokenLogprob

RowEvent = tuple[Sequence, StreamEvent]


class Committer:
    """Appends tokens to sequences, and makes the events that tell of them."""

    def __init__(
        self,
        kv_cache: KVCacheManager,
        prefiller: Prefiller,
        grammars: GrammarMasks,
        drafting: Drafting,
        eos_token_ids: Collection[int],
        *,
        has_windows: bool,
    ) -> None:
        self._kv_cache = kv_cache
        self._prefiller = prefiller
        self._grammars = grammars
        self._drafting = drafting
        self._eos_token_ids = eos_token_ids
        self._has_windows = has_windows
        self.num_tokens = 0  # that were appended, of all rows

    def commit(self, flight: Flight) -> list[RowEvent]:
        """Append the rows' tokens. A row that ended meanwhile gives its blocks back.

        The events are in the order of the rows, and each row's in that of its tokens.
        """
        tokens: list[int] = flight.sampled.tokens.tolist()  # type: ignore[assignment]
        logprobs = flight.logprobs(tokens)
        now = time.monotonic()
        events: list[RowEvent] = []
        start = 0
        for sequence, drafted in zip(flight.rows, flight.drafted, strict=True):
            end = start + 1 + len(drafted)
            drawn = tokens[start:end]
            records = logprobs[start:end]
            first_row = start
            start = end
            sequence.in_flight -= 1
            if not sequence.ended:
                events += self._take(sequence, drafted, drawn, records, now, first_row)
            elif sequence.in_flight == 0:
                self._kv_cache.free(sequence)
        return events

    def _take(
        self,
        sequence: Sequence,
        drafted: Rows[int],
        drawn: Rows[int],
        records: Rows[TokenLogprob | None],
        now: float,
        first_row: int,
    ) -> list[RowEvent]:
        """Append what was drawn up to the first token that was drafted otherwise.

        A token that its grammar fails at ends it; the tokens before it stay.
        """
        events: list[RowEvent] = []
        num_new = 0
        for index, token in enumerate(drawn):
            if index and drafted[index - 1] != drawn[index - 1]:
                break
            error = self._grammars.advance(sequence, token)
            if error is not None:
                events.append((sequence, error_event(sequence, error)))
                break
            sequence.timings.token_times.append(now)
            sequence.token_ids.append(token)
            num_new += 1
            if sequence.token_history is not None:
                sequence.token_history.push(token)
            event = token_event(sequence, token, records[index], self._eos_token_ids)
            events.append((sequence, event))
            if event.finish_reason is not None:
                break
        if num_new:
            self._account(sequence, num_new, first_row)
        return events

    def _account(self, sequence: Sequence, num_new: int, first_row: int) -> None:
        """Note the tokens that a step brought; offer the blocks that they filled."""
        self.num_tokens += num_new
        sequence.num_computed += num_new - 1
        sequence.tables.state.keep(num_new)
        self._drafting.record(sequence, num_new, first_row)
        # A block is full, or was begun; a window may move with every token.
        if self._has_windows or len(sequence.token_ids) % BLOCK_TOKENS <= num_new:
            self._prefiller.share_blocks(sequence)
