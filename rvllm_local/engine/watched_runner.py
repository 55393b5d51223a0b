"""A runner that keeps what its model ended with, for a head that reads it.

The states of the latest call are kept: of a step's rows, or of a prompt's chunk. Steps
are not compiled, since a compiled graph hands out nothing but its results.
"""

from __future__ import annotations

from collections.abc import Sequence

from rvllm_local.attention.geometry import ChunkRows, DecodeRow
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.logprobs import TargetLogprobs
from rvllm_local.engine.sampling.sampler import RowSampling, SampledTokens, Tokens
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.models.mtp import EndStates, watch_end


class WatchedRunner(ModelRunner):
    """Calls the model as `ModelRunner`."""

    @property
    def ends(self) -> EndStates:
        """What the model ended with in the latest call."""
        return watch_end(self._model)

    def prefill(
        self,
        tables: SequenceTables,
        position: int,
        token_ids: Sequence[int],
        adapter: int = 0,
    ) -> None:
        self.ends.forget()
        super().prefill(tables, position, token_ids, adapter)

    def score(
        self,
        tables: SequenceTables,
        position: int,
        token_ids: Sequence[int],
        targets: Sequence[int],
        num_top: int,
        adapter: int = 0,
    ) -> list[TargetLogprobs]:
        self.ends.forget()
        return super().score(tables, position, token_ids, targets, num_top, adapter)

    def sample(
        self,
        rows: Sequence[DecodeRow],
        samplings: Sequence[RowSampling] | None,
        previous: Tokens | None,
        chunks: Sequence[ChunkRows] = (),
    ) -> SampledTokens:
        self.ends.forget()
        return super().sample(rows, samplings, previous, chunks)

    def _compiled_for(self, rows: Sequence[DecodeRow]) -> CompiledDecode | None:
        return None
