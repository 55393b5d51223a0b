"""The contract of the other ranks, as what leads them takes it; see `team`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from rvllm_local.distributed import frames


class OtherRanks(Protocol):
    """Whom rank 0 tells what to do."""

    def tell(self, frame: frames.Frame) -> None:
        """Send a frame to all."""

    def ask(self, frame: frames.Frame) -> bool:
        """As `tell`; whether all of them could do it."""

    def together(self, call: frames.Call) -> AbstractContextManager[None]:
        """Tell all of a call, which has to be made within the block.

        One that fails there has left the ranks at different points, and ends the job.
        """
