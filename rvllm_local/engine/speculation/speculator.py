"""Decides what each row of a step drafts, and learns from what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.engine.speculation.acceptance import FORCED, Acceptance
from rvllm_local.engine.speculation.contract import (
    MOST_DRAFTED,
    NOTHING,
    Drafter,
    Proposal,
)
from rvllm_local.engine.speculation.depth import StepCosts, choose_depths

_WORTH_WAITING = 0.5  # chance from which a step is not launched before the last is read


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

    @property
    def is_promising(self) -> bool:
        """It is worth a wait for the step in flight."""
        proposal = self.proposal
        if not proposal.tokens:
            return False
        return self.acceptance.chance(proposal.kind) >= _WORTH_WAITING


class Speculator:
    """Over all rows of a step: their tokens share one call."""

    def __init__(self, drafter: Drafter, most_tokens: int) -> None:
        """A call may have `most_tokens` tokens, drafted or not."""
        self._drafter = drafter
        self._most_tokens = most_tokens
        self.costs = StepCosts()
        self.accepted = 0
        self.rejected = 0

    @property
    def name(self) -> str:
        return self._drafter.name

    def open(self, token_ids: Sequence[int]) -> RowDrafts:
        """The drafts of a sequence whose prompt is all that is known."""
        return RowDrafts(self._drafter.open(token_ids))

    def guess(self, rows: Sequence[RowDrafts]) -> None:
        """Have the drafter propose for rows whose tokens are all known."""
        missing = [row for row in rows if not row.proposal.tokens]
        if not missing:
            return
        streams = [row.stream for row in missing]
        proposals = self._drafter.propose(streams, MOST_DRAFTED)
        for row, proposal in zip(missing, proposals, strict=True):
            row.proposal = proposal

    def choose(
        self,
        rows: Sequence[RowDrafts],
        forced: Sequence[Sequence[int]],
        rooms: Sequence[Callable[[int], int]],
    ) -> None:
        """Set the tokens that each row drafts in the next step.

        `forced` are tokens that a row's grammar leaves no choice about. A row's entry
        of `rooms` says how many tokens of so many it has room for.
        """
        proposals = []
        chances = []
        for row, sure in zip(rows, forced, strict=True):
            proposal = row.proposal
            if sure:
                proposal = Proposal(tuple(sure[:MOST_DRAFTED]), FORCED)
            proposals.append(proposal)
            chances.append(_chances(row, proposal))
        most = max(0, self._most_tokens - len(chances))
        depths = choose_depths(self.costs, chances, most)
        for index, row in enumerate(rows):
            depth = depths[index]
            if depth:
                depth = rooms[index](depth)
            row.tokens = proposals[index].tokens[:depth]

    def record(
        self,
        row: RowDrafts,
        token_ids: Sequence[int],
        num_kept: int,
    ) -> None:
        """Take the tokens that a step brought; so many of them had been drafted."""
        row.acceptance.record(row.proposal, token_ids)
        num_rejected = len(row.tokens) - num_kept
        row.accepted += num_kept
        row.rejected += num_rejected
        self.accepted += num_kept
        self.rejected += num_rejected
        row.tokens = ()
        row.proposal = NOTHING
        self._drafter.push(row.stream, token_ids)


def _chances(row: RowDrafts, proposal: Proposal) -> list[float]:
    """Of each token of a proposal to be kept: all before it have to be right."""
    chance = row.acceptance.chance(proposal.kind)
    chances = []
    to_be_kept = 1.0
    for _ in proposal.tokens:
        to_be_kept *= chance
        chances.append(to_be_kept)
    return chances
