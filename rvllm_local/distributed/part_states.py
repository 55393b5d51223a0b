"""What the recurrent layers of one rank keep of each sequence, as rank 0 names it."""

from __future__ import annotations

from rvllm_local.distributed import frames
from rvllm_local.memory.state import Arrays, RecurrentState


class PartStates:
    """States by their numbers, and snapshots by their keys. Rank 0 says what goes."""

    def __init__(self) -> None:
        self._states: dict[int, RecurrentState] = {}
        self._snapshots: dict[bytes, Arrays] = {}

    def get(self, number: int) -> RecurrentState:
        """The state of this number; an empty one if it was not heard of yet."""
        return self._states.setdefault(number, RecurrentState(number=number))

    def change(self, change: frames.StateChange) -> None:
        """Do what rank 0 has done between two calls."""
        if isinstance(change, frames.StateFork):
            source = self.get(change.source)
            self.get(change.fork).put(source.batch, source.row)
        elif isinstance(change, frames.StateClear):
            self._states.pop(change.state, None)
        elif isinstance(change, frames.StateResume):
            self.get(change.state).put(self._snapshots[change.key])
        elif isinstance(change, frames.SnapshotKeep):
            self._snapshots[change.key] = self.get(change.state).copied()
        else:
            self._snapshots.pop(change.key, None)
