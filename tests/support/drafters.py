"""Drafters that no engine would choose: always right, never right, and rubbish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.drafting import Drafting
from rvllm_local.engine.speculation.contract import (
    NOTHING,
    Drafter,
    Drawing,
    Proposal,
    alike,
)
from rvllm_local.engine.speculation.depth import StepCosts
from rvllm_local.engine.speculation.speculator import Speculator


class FreeTokens(StepCosts):
    """Says that a step costs the same whatever it checks, so that all is drafted."""

    def knows_plain(self, num_rows: int) -> bool:
        return True

    def cost(self, num_tokens: int, *, checks: bool = False) -> float:
        return 1.0


class FourEach:
    """Has four tokens drafted of each row, whatever they cost."""

    def choose(self, num_rows: int, chance: float, most: int) -> int:
        return min(4, most)

    def record(self, length: int, seconds: float) -> None:
        """Nothing is learned."""


class TokenList:
    """What all of these keep of a sequence."""

    name = "made up"
    runs_a_model = False
    reads_prompts = False

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> list[int]:
        return list(token_ids)

    def close(self, stream: list[int]) -> None:
        """Nothing is kept elsewhere."""

    def push(
        self, stream: list[int], token_ids: Sequence[int], first_row: int = 0
    ) -> None:
        stream.extend(token_ids)

    def read(self, stream: list[int], position: int, token_ids: Sequence[int]) -> None:
        """It has the tokens."""

    def propose_after(
        self, stream: list[int], token_ids: Sequence[int], most: int
    ) -> Proposal:
        return NOTHING


class Rubbish(TokenList):
    """Tokens by chance, one to seven of them."""

    def __init__(self, vocab_size: int) -> None:
        self._chance = np.random.default_rng(0)
        self._vocab_size = vocab_size

    def propose(self, streams: Sequence[list[int]], most: int) -> list[Proposal]:
        proposals = []
        for _ in streams:
            count = int(self._chance.integers(1, most + 1))
            tokens = self._chance.integers(0, self._vocab_size, count)
            proposals.append(alike(tokens.tolist(), "rubbish"))
        return proposals


class Knowing(TokenList):
    """Knows the answers by their prompts; with `off_by` each token is another one."""

    def __init__(
        self,
        answers: Sequence[Sequence[int]],
        vocab_size: int,
        off_by: int = 0,
    ) -> None:
        """`answers` are whole sequences, prompts and answers."""
        self._answers = [list(answer) for answer in answers]
        self._vocab_size = vocab_size
        self._off_by = off_by

    def propose(self, streams: Sequence[list[int]], most: int) -> list[Proposal]:
        return [self._of(stream, most) for stream in streams]

    def _of(self, tokens: list[int], most: int) -> Proposal:
        length = len(tokens)
        for answer in self._answers:
            if answer[:length] == tokens and len(answer) > length:
                right = answer[length : length + most]
                shifted = [(t + self._off_by) % self._vocab_size for t in right]
                return alike(shifted, "known")
        return NOTHING


def let_draft(
    core: EngineCore,
    drafter: Drafter,
    most_tokens: int = 16,
    costs: Callable[[], StepCosts] = FreeTokens,
) -> Speculator:
    """From now on this drafter drafts for an engine that drafts at all."""
    assert core._drafting._speculator is not None
    speculator = Speculator(drafter, most_tokens)
    speculator.costs = costs()
    drafting = Drafting(speculator, core._scheduler, overlaps=core._runner.overlaps)
    core._parts = replace(core._parts, speculator=speculator)
    core._drafting = core._committer._drafting = drafting
    return speculator
