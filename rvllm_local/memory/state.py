"""What recurrent layers keep of a sequence, and snapshots of it at block boundaries.

The arrays have a fixed size and are never written to. So a snapshot refers to small
arrays, and nothing is copied for a hit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import mlx.core as mx

Arrays = tuple[mx.array | None, ...]


class RecurrentState:
    """One sequence's state after its last computed token.

    It is row `row` of arrays that a call's rows may share. Empty before the first
    token, and always so for a model without recurrent layers. Other ranks know the
    sequence's state by `number`. `passed` are those of the latest step, this one at
    their end, where some may be of drafted tokens.
    """

    __slots__ = ("batch", "number", "passed", "row")

    def __init__(self, batch: Arrays = (), row: int = 0, number: int = 0) -> None:
        self.batch = batch
        self.row = row
        self.number = number
        self.passed: list[tuple[Arrays, int]] | None = None

    def put(self, batch: Arrays, row: int = 0) -> None:
        """Point at a new state."""
        self.batch = batch
        self.row = row
        self.passed = None

    def begin_step(self, *, records: bool) -> None:
        """The next state is the first of a step; `records` if it may be that of a draft."""
        self.passed = [] if records else None

    def advance(self, batch: Arrays, row: int) -> None:
        """Point at the state after the step's next token."""
        self.batch = batch
        self.row = row
        if self.passed is not None:
            self.passed.append((batch, row))

    def keep(self, count: int) -> None:
        """Go back to the state after so many of the latest step's tokens."""
        if self.passed:
            self.batch, self.row = self.passed[count - 1]
            del self.passed[count:]

    def before(self, count: int) -> RecurrentState | None:
        """The state so many tokens ago; None if the latest step did not record it."""
        if not count:
            return self
        if not self.passed or count >= len(self.passed):
            return None
        batch, row = self.passed[-1 - count]
        return RecurrentState(batch, row, self.number)

    @property
    def arrays(self) -> Arrays:
        """`[1, ...]` each, or None for one that the model leaves empty."""
        end = self.row + 1
        arrays: list[mx.array | None] = []
        for part in self.batch:
            if part is None:
                arrays.append(None)
            else:
                arrays.append(part[self.row : end])
        return tuple(arrays)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for states that can be stacked."""
        signature: list[object] = []
        for part in self.batch:
            if part is None:
                signature.append(None)
            else:
                signature.append((part.shape[1:], part.dtype))
        return tuple(signature)

    def copied(self) -> Arrays:
        """The arrays without the memory of the call that they come from."""
        copies: list[mx.array | None] = []
        started: list[mx.array] = []
        for part in self.arrays:
            if part is None:
                copies.append(None)
                continue
            copy = mx.contiguous(part)
            copies.append(copy)
            started.append(copy)
        mx.async_eval(started)  # type: ignore[no-untyped-call]
        return tuple(copies)


def stacked(states: Sequence[RecurrentState], size: int | None = None) -> Arrays:
    """One array of rows for each of the states' arrays; empty without states.

    All states have one signature. With a `size` there are so many rows: what stands
    behind the states' means nothing.
    """
    if not states:
        return ()
    size = size or len(states)
    if _is_whole_batch(states, size):
        return states[0].batch
    rows = [state.arrays for state in states]
    rows += rows[:1] * (size - len(rows))
    return tuple(_joined(column) for column in zip(*rows, strict=True))


def are_alike(states: Sequence[RecurrentState]) -> bool:
    """True for states of one signature that hold something."""
    first = states[0]
    if not first.batch:
        return False
    for state in states:
        if state.batch is not first.batch and state.signature != first.signature:
            return False
    return True


def _is_whole_batch(states: Sequence[RecurrentState], size: int) -> bool:
    """True for the same rows as in the call before, in their order."""
    batch = states[0].batch
    if batch and _rows(batch) != size:
        return False
    for index, state in enumerate(states):
        if state.row != index or state.batch is not batch:
            return False
    return True


def _rows(batch: Arrays) -> int:
    for part in batch:
        if part is not None:
            rows: int = part.shape[0]
            return rows
    return 0


def _joined(column: Sequence[mx.array | None]) -> mx.array | None:
    parts = [part for part in column if part is not None]
    if not parts:
        return None
    return mx.concatenate(parts, axis=0)


class StateWatcher:
    """Is told what happens to states between the calls that compute them.

    This one lets it be.
    """

    def forked(self, source: RecurrentState, fork: RecurrentState) -> None:
        """A second sequence begins with the state of the first."""

    def cleared(self, state: RecurrentState) -> None:
        """The state is empty again, or its sequence has ended."""

    def resumed(self, state: RecurrentState, key: bytes) -> None:
        """The state is now that of a snapshot."""

    def kept(self, key: bytes, state: RecurrentState) -> None:
        """A snapshot of the state was taken."""

    def dropped(self, key: bytes) -> None:
        """A snapshot has gone."""


class StateSnapshots:
    """States at block boundaries, by the key of the block before.

    The least recently used go first. `before_evict(key, arrays)` is called for those
    that go so, and the watcher hears of every one that goes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()
        self.before_evict: Callable[[bytes, Arrays], None] | None = None
        self.watcher = StateWatcher()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def get(self, key: bytes) -> Arrays:
        """The snapshot under a key that is there."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def peek(self, key: bytes) -> Arrays | None:
        """The snapshot under a key, which does not count as a use."""
        return self._kept.get(key)

    def add(self, key: bytes, state: RecurrentState) -> None:
        """Keep a copy of a sequence's state, unless there is one under the key."""
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self.put(key, state.copied())
            self.watcher.kept(key, state)

    def put(self, key: bytes, arrays: Arrays) -> None:
        """Keep a state that is nobody's row."""
        while len(self._kept) >= self._capacity:
            evicted, old = self._kept.popitem(last=False)
            if self.before_evict is not None:
                self.before_evict(evicted, old)
            self.watcher.dropped(evicted)
        self._kept[key] = arrays

    def discard(self, key: bytes) -> None:
        """Forget a snapshot that a later one stands for, if it is there."""
        if self._kept.pop(key, None) is not None:
            self.watcher.dropped(key)

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._kept):
            self.discard(key)
