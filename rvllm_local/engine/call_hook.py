"""What else belongs to a runner's calls, for whoever has to be there at each of them.

Other ranks make the same calls; a head reads the states that a call ended with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from rvllm_local.attention.geometry import DecodeRow, TokenChunk

_NOTHING = contextlib.nullcontext()


class PrefillCall(NamedTuple):
    """`ModelRunner.prefill` of a chunk."""

    chunk: TokenChunk


class ScoreCall(NamedTuple):
    """`ModelRunner.score` of a chunk."""

    chunk: TokenChunk
    targets: Sequence[int]
    num_top: int


class StepCall(NamedTuple):
    """`ModelRunner.sample`: a decode step of these rows, which takes chunks along."""

    rows: Sequence[DecodeRow]
    chunks: Sequence[TokenChunk]


RunnerCall = PrefillCall | ScoreCall | StepCall


class CallHook(Protocol):
    """Surrounds each call of a runner.

    overlaps: a step may still be in flight when its call has returned.
    """

    overlaps: bool

    def around(self, call: RunnerCall) -> AbstractContextManager[None]:
        """What is entered before the call is made, and left after it."""


def around(hook: CallHook | None, call: RunnerCall) -> AbstractContextManager[None]:
    """What a call is made within; nothing without a hook."""
    if hook is None:
        return _NOTHING
    return hook.around(call)
