"""A runner that behaves like one over a device: a decode step runs when its result, or what follows it, is asked for.

What it computes is the plain runner's. Tables are those of the launch, as a device would read them; tokens of a step in flight
come from that step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.call_hook import RunnerCall, StepCall
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.sampler import SampledTokens
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.tables import SequenceTables


class Later:
    """Tokens that are drawn when somebody reads them."""

    def __init__(self, launched: LateStep) -> None:
        self._step = launched

    def tolist(self) -> list[int]:
        self._step.run()
        assert self._step.tokens is not None
        return self._step.tokens


class LateStep:
    """One launched step, and the one before it, which runs first."""

    def __init__(self, compute: Callable[[], list[int]]) -> None:
        self._compute: Callable[[], list[int]] | None = compute
        self.tokens: list[int] | None = None

    def run(self) -> None:
        if self._compute is not None:
            compute, self._compute = self._compute, None
            self.tokens = compute()


class OverlappingRunner(ModelRunner):
    """Made of a runner that exists, with all that it owns.

    As its own hook it has prompts wait for the launched step.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.__dict__.update(runner.__dict__)
        self.hook = self
        self._launched: LateStep | None = None
        self.num_overlapped = 0

    @property
    def overlaps(self) -> bool:
        return True

    @property
    def mixes(self) -> bool:
        return False

    def wait(self) -> None:
        if self._launched is not None:
            self._launched.run()

    def around(self, call: RunnerCall) -> contextlib.AbstractContextManager[None]:
        if not isinstance(call, StepCall):
            self.wait()
        return contextlib.nullcontext()

    def sample(
        self, rows: Sequence[DecodeRow], samplings: Any, previous: Any, chunks: Any = ()
    ) -> SampledTokens:
        before = self._launched
        self.num_overlapped += any(row.previous_row is not None for row in rows)
        frozen = [
            DecodeRow(_copied(row.tables), row.position, row.token_id, row.previous_row)
            for row in rows
        ]

        def compute() -> list[int]:
            if before is not None:
                before.run()
            known = [self._known(row, previous) for row in frozen]
            found: list[int] = (
                super(OverlappingRunner, self)
                .sample(known, samplings, None)
                .tokens.tolist()
            )
            return found

        self._launched = LateStep(compute)
        if self.layout.has_state:  # a device's arrays stand for what they will be: the state is the launched step's at once
            self._launched.run()
        return SampledTokens(Later(self._launched))  # type: ignore[arg-type]

    @staticmethod
    def _known(row: DecodeRow, previous: Any) -> DecodeRow:
        if row.previous_row is None:
            return row
        return DecodeRow(row.tables, row.position, previous.tolist()[row.previous_row])


class WaitingIO:
    """Block transfers that come after every launched step, as on a device's queue."""

    def __init__(self, runner: OverlappingRunner, inner: Any) -> None:
        self._runner, self._inner = runner, inner

    def __getattr__(self, name: str) -> Any:
        self._runner.wait()
        return getattr(self._inner, name)


def make_overlapping(core: EngineCore) -> OverlappingRunner:
    """From now on the core's decode steps are in flight while it reads the ones before."""
    runner = OverlappingRunner(core._runner)
    core._runner = core._prefiller._runner = runner
    waiting = WaitingIO(runner, core._kv_cache._io)
    cache = core._kv_cache
    cache._io = cache._disk._io = cache._swapper._io = waiting
    return runner


def _copied(tables: SequenceTables) -> SequenceTables:
    groups = tuple(
        BlockTable(list(table.block_ids), table.start_block) for table in tables.groups
    )
    return SequenceTables(groups, tables.state)


def grammar_mask(tokens: set[int], vocab_size: int) -> np.ndarray:
    """The packed mask that allows these tokens."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
