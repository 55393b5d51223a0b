"""Opens the core of a job of several ranks, on rank 0."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from rvllm_local.distributed import frames
from rvllm_local.distributed.agreement import model_mark
from rvllm_local.distributed.backends import choose_backend
from rvllm_local.distributed.gathering import Gathered, Gathering
from rvllm_local.distributed.leading_calls import (
    LeadingBlockIO,
    LeadingCalls,
    LeadingStates,
    LeadingSwapper,
)
from rvllm_local.distributed.leading_disk import LeadingDiskTier
from rvllm_local.distributed.meeting import form_group
from rvllm_local.distributed.other_ranks import OtherRanks
from rvllm_local.distributed.part_server import ready_frame
from rvllm_local.distributed.team import Team, joined_mark
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.startup.build import assemble
from rvllm_local.engine.startup.make_kv_cache import Tiers
from rvllm_local.engine.startup.open_part import ModelPart, open_part, plan_part
from rvllm_local.errors import EngineError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions


def leading_core(
    part: ModelPart, text: Vocabulary, options: EngineOptions, ranks: OtherRanks
) -> EngineCore:
    """The core over rank 0's part. What it does to the part the others do to theirs."""
    part.runner.hook = LeadingCalls(ranks)
    tiers = Tiers(
        functools.partial(LeadingBlockIO, ranks=ranks),
        functools.partial(LeadingSwapper, ranks=ranks),
        functools.partial(LeadingDiskTier, ranks=ranks),
    )
    core = assemble(
        part.parts, part.plan, part.runner, text, options, part.adapters, tiers
    )
    if part.parts.layout.has_state:
        part.parts.kv.watch_states(LeadingStates(ranks))
    return core


class LeadingJob:
    """One job as rank 0 runs it. Made on the thread that lives as long as the job."""

    def __init__(
        self,
        files: ModelFiles,
        options: EngineOptions,
        say: Callable[[str], None],
    ) -> None:
        """Bring the ranks together; `say` is told whom it waits for.

        Raises `ConfigError`, `UnsupportedModelError`, `MemoryBudgetError` and
        `EngineError` if they cannot serve this model.
        """
        choose_backend(options)
        plan_part(files, options, 0)
        self._files = files
        self._options = options
        self._gathering = Gathering(options, str(files.path), say)
        try:
            self._gathered = self._gathering.gather()
            self._check_marks(self._gathered)
        except BaseException:
            self._gathering.abandon()
            raise
        self._team = Team(self._gathered.links, self._gathered.processes)

    def _check_marks(self, gathered: Gathered) -> None:
        ours = model_mark(self._files)
        for rank, link in enumerate(gathered.links, start=1):
            if joined_mark(link, rank, self._options.ranks) != ours:
                reason = (
                    f"rank {rank} of {self._options.ranks} at {link.peer} has another "
                    f"model than {self._files.name} here; fetch the same one there"
                )
                with contextlib.suppress(OSError):
                    link.send(frames.Failed("EngineError", reason))
                raise EngineError(reason)

    def open_core(self, text: Vocabulary) -> EngineCore:
        """Form the group, load, and build the core, on the engine's thread.

        Raises as `open_part` does, and `EngineError`.
        """
        team = self._team
        team.start(self._gathered.pids)
        team.tell(frames.Go())
        group = form_group(self._gathered.meeting, 0)
        try:
            part = open_part(self._files, self._options, group)
        except RuntimeError:  # MLX's: as where a rank has gone
            team.check_present()
            raise
        team.await_ready(ready_frame(part))
        core = leading_core(part, text, self._options, team)
        team.be_strict()
        return core

    def close(self) -> None:
        """End the other ranks."""
        self._team.close()
