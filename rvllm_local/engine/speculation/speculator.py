"""Decides what each row of a step drafts, and learns from what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.engine.speculation.acceptance import Acceptance
from rvllm_local.engine.speculation.contract import (
    BY_MODEL,
    MOST_DRAFTED,
    NOTHING,
    Drafter,
    Drawing,
    Proposal,
)
from rvllm_local.engine.speculation.depth import DraftLength, StepCosts, choose_depths


@dataclass(slots=True)
class RowDrafts:
    """The drafts of one sequence.

    stream: what stands for it with the drafter.
    proposal: what may come next; nothing if that is not known.
    tokens: those of the proposal that the step on its way checks.
    """

    stream: Any
    acceptance: Acceptance = field(default_factory=Acceptance)
    proposal: Proposal = NOTHING
    tokens: tuple[int, ...] = ()
    accepted: int = 0
    rejected: int = 0


class Speculator:
    """Over all rows of a step: their tokens share one call."""

    def __init__(self, drafter: Drafter, most_tokens: int) -> None:
        """A call may have `most_tokens` tokens, drafted or not."""
        self._drafter = drafter
        self._most_tokens = most_tokens
        self.costs = StepCosts()
        self._length = DraftLength(self.costs)
        self.accepted = 0
        self.rejected = 0

    @property
    def name(self) -> str:
        return self._drafter.name

    @property
    def runs_a_model(self) -> bool:
        """Guesses take time: they are made for all rows at once, once a step."""
        return self._drafter.runs_a_model

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> RowDrafts:
        """The drafts of a sequence, as far as it is known."""
        return RowDrafts(self._drafter.open(token_ids, drawing))

    def close(self, row: RowDrafts) -> None:
        """The sequence has ended."""
        self._drafter.close(row.stream)

    @property
    def reads_prompts(self) -> bool:
        """It is told of each chunk of a prompt."""
        return self._drafter.reads_prompts

    def read(self, row: RowDrafts, position: int, token_ids: Sequence[int]) -> None:
        """A chunk that began there was computed; these tokens came behind its own."""
        self._drafter.read(row.stream, position, token_ids)

    def guess(self, rows: Sequence[RowDrafts]) -> None:
        """Have the drafter propose for rows whose tokens are all known."""
        missing = [row for row in rows if not row.proposal.tokens]
        most = MOST_DRAFTED
        if self.runs_a_model:
            most = self._worthwhile_length(rows)
        if not missing or not most:
            return
        streams = [row.stream for row in missing]
        began = time.monotonic()
        proposals = self._drafter.propose(streams, most)
        seconds = time.monotonic() - began
        if any(proposal.tokens for proposal in proposals):
            self._length.record(most, seconds)
        for row, proposal in zip(missing, proposals, strict=True):
            row.proposal = proposal

    def would_draft(self, rows: Sequence[RowDrafts], num_rows: int) -> bool:
        """What is guessed for these rows is worth a wait for the step in flight.

        They are among `num_rows` of the next step.
        """
        chances = [_chances(row, row.proposal) for row in rows]
        chances += [[]] * (num_rows - len(rows))
        return any(chances) and any(self._depths(chances))

    def _depths(self, chances: Sequence[Sequence[float]]) -> list[int]:
        if not self.costs.knows_plain(len(chances)):
            return [0] * len(chances)  # nothing to hold a step with drafts against
        most = max(0, self._most_tokens - len(chances))
        return choose_depths(self.costs, chances, most)

    def _worthwhile_length(self, rows: Sequence[RowDrafts]) -> int:
        if not self.costs.knows_plain(len(rows)):
            return 0
        chance = 0.0
        for row in rows:
            chance += row.acceptance.chance(BY_MODEL) / len(rows)
        most = min(self._most_tokens // len(rows) - 1, MOST_DRAFTED)
        if most < 1:
            return 0
        return self._length.choose(len(rows), chance, most)

    def guess_after(self, row: RowDrafts, token_ids: Sequence[int]) -> Proposal:
        """What the drafter proposes within a grammar, were these tokens to come."""
        if not token_ids and row.proposal.tokens:
            return row.proposal
        most = MOST_DRAFTED - len(token_ids)
        return self._drafter.propose_after(row.stream, token_ids, most)

    def choose(
        self,
        rows: Sequence[RowDrafts],
        rooms: Sequence[Callable[[int], int]],
    ) -> None:
        """Set the tokens that each row drafts in the next step.

        A row's entry of `rooms` says how many tokens of so many it has room for.
        """
        depths = self._depths([_chances(row, row.proposal) for row in rows])
        num_drafted = 0
        for index, row in enumerate(rows):
            depth = depths[index]
            if depth:
                depth = rooms[index](depth)
            row.tokens = row.proposal.tokens[:depth]
            num_drafted += len(row.tokens)
        if num_drafted < sum(depths):
            self.costs.note_trial(len(rows) + sum(depths))

    def record(
        self,
        row: RowDrafts,
        token_ids: Sequence[int],
        num_kept: int,
        first_row: int = 0,
    ) -> None:
        """Take the tokens that a step brought; so many of them had been drafted.

        The first was drawn from the step's row `first_row`.
        """
        row.acceptance.record(row.proposal, token_ids)
        num_rejected = len(row.tokens) - num_kept
        row.accepted += num_kept
        row.rejected += num_rejected
        self.accepted += num_kept
        self.rejected += num_rejected
        row.tokens = ()
        row.proposal = NOTHING
        self._drafter.push(row.stream, token_ids, first_row)


def _chances(row: RowDrafts, proposal: Proposal) -> list[float]:
    """Of each token of a proposal to be kept: all before it have to be right."""
    chances = []
    to_be_kept = 1.0
    for kind in proposal.kinds:
        to_be_kept *= row.acceptance.chance(kind)
        chances.append(to_be_kept)
    return chances
