"""Drafts by a smaller model, which draws with the noise of the model that it drafts for.

Where both give a token about the same weight they draw it alike, at any temperature.
The smaller model keeps keys and values of its own. Those of a rejected draft are
written over, as the larger model's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
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

_MOST_BEHIND = 4  # tokens that go along in a decode call; more are prefilled


@dataclass(slots=True, eq=False)
class DraftedText:
    """One sequence as the drafter has it.

    token_ids: those that came.
    ahead: tokens whose keys and values were computed behind them, as drafts.
    num_computed: leading tokens, drafts included, that have keys and values.
    """

    tables: SequenceTables
    drawing: Drawing
    token_ids: list[int]
    ahead: list[int] = field(default_factory=list)
    num_computed: int = 0

    @property
    def num_behind(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.token_ids) - self.num_computed

    def forget_ahead(self, num_right: int = 0) -> None:
        """Take back what was drafted, but for so many tokens that came as drafted."""
        self.num_computed -= len(self.ahead) - num_right
        # Whatever was computed, the last token's call is what draws the next.
        self.num_computed = min(self.num_computed, len(self.token_ids) - 1)
        self.ahead.clear()


class ModelDrafter:
    """Runs the smaller model over the rows of a step, a token of each row a call."""

    runs_a_model = True
    reads_prompts = False

    def __init__(
        self,
        name: str,
        runner: ModelRunner,
        kv: KVTables,
        *,
        vocab_size: int,
        context: int,
        prefill_chunk: int,
    ) -> None:
        """Tokens from `vocab_size` on are unknown to the model that it drafts for.

        No text is longer than `context` tokens.
        """
        self.name = name
        self._runner = runner
        self._kv = kv
        self._vocab_size = vocab_size
        self._context = context
        self._prefill_chunk = prefill_chunk

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> DraftedText:
        tables = self._kv.new_sequence()
        return DraftedText(tables, drawing, list(token_ids))

    def close(self, stream: DraftedText) -> None:
        self._kv.release(stream.tables)

    def read(
        self, stream: DraftedText, position: int, token_ids: Sequence[int]
    ) -> None:
        """It computes the prompt itself."""

    def push(
        self, stream: DraftedText, token_ids: Sequence[int], first_row: int = 0
    ) -> None:
        num_right = 0
        for drafted, token in zip(stream.ahead, token_ids, strict=False):
            if drafted != token:
                break
            num_right += 1
        stream.token_ids.extend(token_ids)
        stream.forget_ahead(num_right)

    def propose_after(
        self,
        stream: DraftedText,
        token_ids: Sequence[int],
        most: int,
    ) -> Proposal:
        return NOTHING

    def propose(self, streams: Sequence[DraftedText], most: int) -> list[Proposal]:
        """Draw `most` tokens for each sequence whose text so far was computed."""
        proposals = {id(stream): NOTHING for stream in streams}
        ready = []
        for stream in streams:
            stream.forget_ahead()
            if self._has_caught_up(stream, most):
                ready.append(stream)
        drafts = self._drafts(ready, most)
        for stream, tokens in zip(ready, drafts, strict=True):
            proposals[id(stream)] = alike(tokens, BY_MODEL)
        return [proposals[id(stream)] for stream in streams]

    def _has_caught_up(self, stream: DraftedText, most: int) -> bool:
        """Compute a chunk of what is missing. False if more is, or has no room."""
        end = len(stream.token_ids) + most
        if end > self._context or not self._kv.can_grow(stream.tables, end):
            return False
        self._kv.grow(stream.tables, end)
        if stream.num_behind <= _MOST_BEHIND:
            return True
        first = stream.num_computed
        last = len(stream.token_ids) - 1
        chunk_end = min(last, first + self._prefill_chunk)
        chunk = stream.token_ids[first:chunk_end]
        self._runner.prefill(TokenChunk(stream.tables, first, chunk))
        self._kv.trim_windows(stream.tables, chunk_end)
        stream.num_computed = chunk_end
        return stream.num_behind <= _MOST_BEHIND

    def _drafts(self, streams: Sequence[DraftedText], most: int) -> list[list[int]]:
        """The tokens that the smaller model draws for each sequence, one after another.

        The first call takes what is missing of the text along.
        """
        drafts: list[list[int]] = [[] for _ in streams]
        for _ in range(most):
            rows: list[DecodeRow] = []
            last_rows = []
            samplings: list[RowSampling] = []
            for stream, drafted in zip(streams, drafts, strict=True):
                missing = self._missing(stream, drafted)
                rows += missing
                last_rows.append(len(rows) - 1)
                samplings += [stream.drawing(drafted)] * len(missing)
            if not rows:
                return drafts
            tokens = draw_rows(self._runner, rows, samplings)
            for index, row in enumerate(last_rows):
                drafts[index].append(min(tokens[row], self._vocab_size - 1))
        return drafts

    def _missing(
        self,
        stream: DraftedText,
        drafted: Sequence[int],
    ) -> list[DecodeRow]:
        """The tokens without keys and values, as rows; from now on they have them."""
        rows = []
        text = [*stream.token_ids, *drafted]
        for position in range(stream.num_computed, len(text)):
            row = DecodeRow(stream.tables, position, text[position])
            rows.append(row)
        stream.num_computed = len(text)
        stream.ahead[:] = drafted
        return rows
