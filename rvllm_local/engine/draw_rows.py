"""Draws the tokens of a model that drafts."""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.sampler import RowSampling


def draw_rows(
    runner: ModelRunner,
    rows: Sequence[DecodeRow],
    samplings: Sequence[RowSampling],
) -> list[int]:
    """Run one decode step. Returns a token for each row."""
    needed = None  # the largest logit is taken
    for sampling in samplings:
        if sampling.history is not None:
            needed = samplings
        if not sampling.params.is_greedy:
            needed = samplings
    sampled = runner.sample(rows, needed, None)
    tokens: list[int] = sampled.tokens.tolist()  # type: ignore[assignment]
    return tokens[: len(rows)]
