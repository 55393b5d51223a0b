"""Drafts for the rows of a step, fitted into the room that their sequences have."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Rows

from rvllm_local.engine.flight import Flight
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.sequence import Sequence
from rvllm_local.engine.speculation.speculator import RowDrafts, Speculator


class Drafting:
    """Between the engine's sequences and a speculator; does nothing without one."""

    def __init__(
        self,
        speculator: Speculator | None,
        scheduler: Scheduler,
        *,
        overlaps: bool,
    ) -> None:
        """`overlaps`: a step may be launched before the one before it was read."""
        self._speculator = speculator
        self._scheduler = scheduler
        self._overlaps = overlaps

    def choose(self, rows: Rows[Sequence]) -> None:
        """Set what each row of the next step drafts. No step is in flight."""
        speculator = self._speculator
        if speculator is None:
            return
        drafts: list[RowDrafts] = []
        forced: list[Rows[int]] = []
        rooms = []
        for row in rows:
            if row.drafts is None:
                row.drafts = speculator.open(row.token_ids)
            drafts.append(row.drafts)
            forced.append(() if row.matcher is None else row.matcher.forced())
            rooms.append(functools.partial(self._room, row))
        speculator.guess(drafts)
        speculator.choose(drafts, forced, rooms)

    def _room(self, row: Sequence, count: int) -> int:
        """How many of `count` drafted tokens a row has room for."""
        until_end = row.max_total - len(row.token_ids) - 1
        return self._scheduler.room_for(row, max(0, min(count, until_end)))

    def needs_last_step(self, rows: Rows[Sequence], flight: Flight) -> bool:
        """The step in flight has to be read before the next one is launched.

        It brings several tokens for a row, or a row has a good guess of what follows.
        """
        if flight.num_drafted:
            return True
        drafts = [row.drafts for row in rows if row.drafts is not None]
        return any(row.is_promising for row in drafts)

    def record(self, sequence: Sequence, num_new: int) -> None:
        """A step brought so many tokens of a sequence; all but the last were drafted."""
        if self._speculator is None or sequence.drafts is None:
            return
        newest = sequence.token_ids[-num_new:]
        self._speculator.record(sequence.drafts, newest, num_new - 1)
        if self._overlaps:
            self._speculator.guess([sequence.drafts])

    def record_time(self, num_tokens: int, seconds: float) -> None:
        """A step that computed so many tokens, and did nothing else, took so long."""
        if self._speculator is not None:
            self._speculator.costs.record(num_tokens, seconds)
