"""What recurrent layers keep of a sequence: arrays of a fixed size, and snapshots of them at block boundaries.

Arrays are never written to, so a snapshot is a reference to small arrays of its own; nothing is copied for a hit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import mlx.core as mx

Arrays = tuple[mx.array | None, ...]


class RecurrentState:
    """One sequence's state after its last computed token: row `row` of arrays that a call's rows may share.

    Empty before the first token, and always so for a model without recurrent layers.
    """

    __slots__ = ("batch", "row")

    def __init__(self, batch: Arrays = (), row: int = 0) -> None:
        self.batch, self.row = batch, row

    def put(self, batch: Arrays, row: int = 0) -> None:
        """Point at a new state."""
        self.batch, self.row = batch, row

    @property
    def arrays(self) -> Arrays:
        """`[1, ...]` each, or None for one that the model leaves empty."""
        return tuple(
            None if part is None else part[self.row : self.row + 1]
            for part in self.batch
        )

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for states that can be stacked."""
        return tuple(
            None if part is None else (part.shape[1:], part.dtype)
            for part in self.batch
        )

    def copied(self) -> Arrays:
        """The arrays without the memory of the call that they come from."""
        kept = tuple(
            None if part is None else mx.contiguous(part) for part in self.arrays
        )
        mx.async_eval([part for part in kept if part is not None])  # type: ignore[no-untyped-call]
        return kept

    def detach(self) -> None:
        """Let go of the memory of the call that this comes from."""
        self.put(self.copied())


def stacked(states: Sequence[RecurrentState]) -> Arrays:
    """One array of rows for each of the states' arrays; all states have one signature. None have none."""
    if not states:
        return ()
    first = states[0]
    if [state.row for state in states] == list(range(len(states))) and all(
        state.batch is first.batch
        and (not state.batch or _rows(state.batch) == len(states))
        for state in states
    ):
        return first.batch  # the same rows as in the call before
    columns = zip(*(state.arrays for state in states), strict=True)
    return tuple(_joined(column) for column in columns)


def _rows(batch: Arrays) -> int:
    return next((part.shape[0] for part in batch if part is not None), 0)


def _joined(column: Sequence[mx.array | None]) -> mx.array | None:
    parts = [part for part in column if part is not None]
    return mx.concatenate(parts, axis=0) if parts else None


class StateSnapshots:
    """States at block boundaries by the key of the block before; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def get(self, key: bytes) -> Arrays:
        """The snapshot under a key that is there."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def add(self, key: bytes, state: RecurrentState) -> None:
        """Keep a copy of a sequence's state, unless the key is known."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        while len(self._kept) >= self._capacity:
            self._kept.popitem(last=False)
        self._kept[key] = state.copied()

    def clear(self) -> None:
        self._kept.clear()
