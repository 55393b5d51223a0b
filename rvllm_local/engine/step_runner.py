"""Runs decode steps of a packed model on the host, past MLX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rvllm_local.attention.backend import KVBackend
from rvllm_local.attention.geometry import DecodeRow, TokenChunk, rows_geometry
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.memory.layout import KVLayout
from rvllm_local.models.cpu.backend import StepModel


class StepRunner(ModelRunner):
    """A runner whose model computes its logits on the host.

    What is drawn goes from numpy to numpy: an array of MLX's would be handed to MLX's
    thread and waited for, twice a step.
    """

    def __init__(
        self,
        model: StepModel,
        layout: KVLayout,
        backend: KVBackend,
        mode: RunMode,
        vocab_size: int,
    ) -> None:
        super().__init__(model, layout, backend, mode, vocab_size)
        self._step_model = model

    def _host_logits(
        self, rows: Sequence[DecodeRow], chunks: Sequence[TokenChunk]
    ) -> npt.NDArray[np.float32]:
        assert not chunks, "this back end mixes no prompts into a decode call"
        geometry = rows_geometry(self.layout, rows)
        token_ids = np.array([row.token_id for row in rows])
        return self._step_model.decode(geometry, token_ids)
