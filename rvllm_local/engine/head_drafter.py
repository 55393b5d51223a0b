"""Drafts by a head of the model itself, which predicts the token after the next.

The head reads what the model ended with at each token, and the token that came after it.
Its keys and values are its own. For tokens that it drafts itself it goes on from its own
states; what it keeps of those is written over once the model's are known. Tokens that
were cached before are unknown to it: its text begins behind them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import mlx.core as mx

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.engine.call_hook import RunnerCall
from rvllm_local.engine.draw_rows import draw_rows
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.sampler import RowSampling
from rvllm_local.engine.speculation.contract import (
    BY_MODEL,
    NOTHING,
    Drawing,
    Proposal,
    alike,
)
from rvllm_local.memory.tables import KVTables, SequenceTables
from rvllm_local.models.mtp import EndStates, Joint


@dataclass(slots=True, eq=False)
class HeadText:
    """One sequence as the head has it: pairs of a token and the state before it.

    first: the position in the sequence of the first state.
    num_computed: pairs that have keys and values.
    tokens, states: of the pairs behind those.
    """

    tables: SequenceTables
    drawing: Drawing
    first: int = 0
    num_computed: int = 0
    tokens: list[int] = field(default_factory=list)
    states: list[mx.array] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The position of the next state."""
        return self.first + self.num_computed + len(self.tokens)


class EndsOfOneCall:
    """Hook of the model's runner: its states are those of the latest call.

    A chunk or a step may be several calls of the model itself.
    """

    overlaps = True

    def __init__(self, ends: EndStates) -> None:
        self._ends = ends

    def around(self, _call: RunnerCall) -> AbstractContextManager[None]:
        self._ends.forget()
        return contextlib.nullcontext()


class HeadDrafter:
    """Runs the head over the rows of a step, a token of each row a call."""

    name = "mtp"
    runs_a_model = True
    reads_prompts = True

    def __init__(
        self,
        runner: ModelRunner,
        kv: KVTables,
        joint: Joint,
        *,
        ends: EndStates,
        own_ends: EndStates,
        context: int,
    ) -> None:
        """`ends` are the model's states, `own_ends` the head's."""
        self._runner = runner
        self._kv = kv
        self._joint = joint
        self._ends = ends
        self._own_ends = own_ends
        self._context = context

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> HeadText:
        return HeadText(self._kv.new_sequence(), drawing)

    def close(self, stream: HeadText) -> None:
        self._kv.release(stream.tables)

    def read(self, stream: HeadText, position: int, token_ids: Sequence[int]) -> None:
        """Take a prompt's chunk that the model has just computed.

        `token_ids` are those behind each of its tokens, the first of which stands at
        `position`.
        """
        self._restart_unless(stream, position)
        count = len(token_ids)
        end = stream.num_computed + count
        if end > self._context or not self._kv.can_grow(stream.tables, end):
            self._restart(stream)
            return
        self._kv.grow(stream.tables, end)
        self._joint.give(self._ends.of_chunk(count))
        chunk = TokenChunk(stream.tables, stream.num_computed, token_ids)
        self._runner.prefill(chunk)
        self._own_ends.forget()
        stream.num_computed = end

    def _restart_unless(self, stream: HeadText, position: int) -> None:
        """Begin anew if this is not where the next state belongs."""
        if stream.end != position or stream.tokens:
            self._restart(stream)
        if not stream.num_computed:
            stream.first = position

    def _restart(self, stream: HeadText) -> None:
        self._kv.release(stream.tables)
        stream.tables = self._kv.new_sequence()
        stream.num_computed = 0
        stream.tokens.clear()
        stream.states.clear()

    def push(
        self, stream: HeadText, token_ids: Sequence[int], first_row: int = 0
    ) -> None:
        count = len(token_ids)
        stream.tokens.extend(token_ids)
        stream.states.append(self._ends.of_rows(first_row, count))

    def propose_after(
        self, stream: HeadText, token_ids: Sequence[int], most: int
    ) -> Proposal:
        return NOTHING

    def propose(self, streams: Sequence[HeadText], most: int) -> list[Proposal]:
        """Draw `most` tokens for each sequence of which a state is known."""
        proposals = {id(stream): NOTHING for stream in streams}
        ready = [stream for stream in streams if self._has_room(stream, most)]
        for stream, tokens in zip(ready, self._drafts(ready, most), strict=True):
            proposals[id(stream)] = alike(tokens, BY_MODEL)
        return [proposals[id(stream)] for stream in streams]

    def _has_room(self, stream: HeadText, most: int) -> bool:
        end = stream.num_computed + len(stream.tokens) + most
        if not stream.tokens or end > self._context:
            return False
        if not self._kv.can_grow(stream.tables, end):
            return False
        self._kv.grow(stream.tables, end)
        return True

    def _drafts(self, streams: Sequence[HeadText], most: int) -> list[list[int]]:
        """The tokens that the head draws for each sequence, one after another."""
        drafts: list[list[int]] = [[] for _ in streams]
        if not streams:
            return drafts
        states = self._first_draw(streams, drafts)
        for _ in range(1, most):
            rows = []
            samplings = []
            for stream, drafted in zip(streams, drafts, strict=True):
                position = stream.num_computed + len(drafted) - 1
                rows.append(DecodeRow(stream.tables, position, drafted[-1]))
                samplings.append(stream.drawing(drafted))
            tokens = self._draw(rows, samplings, states)
            states = self._own_ends.of_rows(0, len(rows))
            for drafted, token in zip(drafts, tokens, strict=True):
                drafted.append(token)
        return drafts

    def _first_draw(
        self, streams: Sequence[HeadText], drafts: Sequence[list[int]]
    ) -> mx.array:
        """Compute all pairs that are known, and draw behind the last of each sequence.

        Returns the head's states there, `[streams, hidden]`.
        """
        rows: list[DecodeRow] = []
        samplings: list[RowSampling] = []
        states: list[mx.array] = []
        last_rows = []
        for stream in streams:
            for token in stream.tokens:
                rows.append(DecodeRow(stream.tables, stream.num_computed, token))
                stream.num_computed += 1
            last_rows.append(len(rows) - 1)
            samplings += [stream.drawing(())] * len(stream.tokens)
            states += stream.states
            stream.tokens.clear()
            stream.states.clear()
        tokens = self._draw(rows, samplings, mx.concatenate(states))
        for drafted, row in zip(drafts, last_rows, strict=True):
            drafted.append(tokens[row])
        return self._own_ends.of_rows(0, len(rows))[mx.array(last_rows)]

    def _draw(
        self,
        rows: Sequence[DecodeRow],
        samplings: Sequence[RowSampling],
        states: mx.array,
    ) -> list[int]:
        self._own_ends.forget()
        self._joint.give(states)
        return draw_rows(self._runner, rows, samplings)
