"""The processes that `rvllm serve` will need, started before the server is imported.

Each imports what it takes, beside the server and the others, and waits for its work.
Where no model is named none is started: the machine may be measured to choose one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rvllm_local import host
from rvllm_local.child_start import ENGINE, INSPECTION, PROMPTS, Spare


@dataclass(frozen=True, slots=True)
class Spares:
    """One process of each kind, for the model that is loaded first."""

    engine: Spare
    prompts: Spare
    inspection: Spare | None

    def close(self) -> None:
        """End those that nobody took."""
        for spare in (self.engine, self.prompts, self.inspection):
            if spare is not None:
                spare.close()


def start_spares() -> Spares | None:
    """Start them; they end with the thread that calls this.

    None under MLX's launcher: what it tells this process is not for others. On a CPU
    plans are noted, so that files are looked at once.
    """
    if "MLX_RANK" in os.environ:
        return None
    engine = Spare(ENGINE, keeps_errors=True)
    prompts = Spare(PROMPTS)
    inspection = Spare(INSPECTION) if host.may_have_gpu() else None
    return Spares(engine, prompts, inspection)
