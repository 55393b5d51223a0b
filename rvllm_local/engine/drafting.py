"""Drafts for the rows of a step, fitted into the room that their sequences have."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence as Rows

from rvllm_local.engine.flight import Flight, sampling_after
from rvllm_local.engine.grammar_drafts import ENDED, along_grammar
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.sequence import Sequence
from rvllm_local.engine.speculation.speculator import RowDrafts, Speculator

_RARE = 0.08  # chance of a value to end here, below which it is guessed now and then
_NOW_AND_THEN = 4  # tokens


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
        self._last_choice = 0.0  # monotonic seconds, as those below
        self._last_landing = 0.0
        self._last_launch = 0.0
        self._last_prefill = 0.0

    def choose(self, rows: Rows[Sequence]) -> None:
        """Set what each row of the next step drafts. No step is in flight."""
        speculator = self._speculator
        if speculator is None or not rows:
            return
        drafts: list[RowDrafts] = []
        rooms = []
        for row in rows:
            drafts.append(_drafts_of(row, speculator))
            rooms.append(functools.partial(self._room, row))
        speculator.guess(drafts)
        self._last_choice = time.monotonic()
        for row, of_row in zip(rows, drafts, strict=True):
            if row.matcher is not None and not row.matcher.is_thinking:
                guess_after = functools.partial(speculator.guess_after, of_row)
                of_row.proposal = along_grammar(
                    row.matcher, guess_after, guesses_ends=_guesses_ends(row, of_row)
                )
        speculator.choose(drafts, rooms)

    def _room(self, row: Sequence, count: int) -> int:
        """How many of `count` drafted tokens a row has room for."""
        until_end = row.max_total - len(row.token_ids) - 1
        return self._scheduler.room_for(row, max(0, min(count, until_end)))

    def needs_last_step(self, rows: Rows[Sequence], flight: Flight) -> bool:
        """The step in flight has to be read before the next one is launched.

        It brings several tokens for a row, or what follows is guessed well enough for
        drafts to pay.
        """
        if flight.num_drafted:
            return True
        if self._speculator is None:
            return False
        if self._speculator.runs_a_model:
            return True
        decoding = [row for row in rows if row.is_decoding]
        drafts = [row.drafts for row in decoding if row.drafts is not None]
        return self._speculator.would_draft(drafts, len(decoding))

    def record(self, sequence: Sequence, num_new: int, first_row: int) -> None:
        """A step brought so many tokens of a sequence; all but the last were drafted.

        The first of them was drawn from the step's row `first_row`.
        """
        speculator = self._speculator
        if speculator is None:
            return
        # Where steps overlap nobody asks for drafts until some seem to pay.
        guesses = self._overlaps and not speculator.runs_a_model
        if sequence.drafts is not None:
            newest = sequence.token_ids[-num_new:]
            speculator.record(sequence.drafts, newest, num_new - 1, first_row)
        if guesses:
            speculator.guess([_drafts_of(sequence, speculator)])

    def end(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        if self._speculator is not None and sequence.drafts is not None:
            self._speculator.close(sequence.drafts)

    def note_prefill(self, sequence: Sequence, count: int) -> None:
        """So many tokens of a prompt were computed now.

        No step's time counts that this fell into.
        """
        self._last_prefill = time.monotonic()
        speculator = self._speculator
        if speculator is None or not speculator.reads_prompts:
            return
        end = sequence.num_computed
        behind = sequence.token_ids[end - count + 1 : end + 1]
        speculator.read(_drafts_of(sequence, speculator), end - count, behind)

    def note_launch(self) -> None:
        """A step is launched now."""
        self._last_launch = time.monotonic()

    def record_landing(self, flight: Flight) -> None:
        """A step was read now. It took the time since its tokens were chosen.

        Steps that overlap take the time between two of them, in which the next one was
        launched. What is left of a step after which none was says nothing.
        """
        began = max(self._last_choice, self._last_landing)
        self._last_landing = time.monotonic()
        if self._speculator is None or flight.num_mixed or self._last_prefill > began:
            return
        if self._last_launch < began:
            return
        seconds = self._last_landing - began
        checks = flight.num_drafted > 0
        self._speculator.costs.record(flight.num_tokens, seconds, checks=checks)


def _drafts_of(row: Sequence, speculator: Speculator) -> RowDrafts:
    """The drafts of a sequence, which begin where they are first asked for."""
    if row.drafts is None:
        drawing = functools.partial(sampling_after, row)
        row.drafts = speculator.open(row.token_ids, drawing)
    return row.drafts


def _guesses_ends(row: Sequence, drafts: RowDrafts) -> bool:
    """It takes time to see what comes if a value ends, which it does not in a tale."""
    if drafts.acceptance.chance(ENDED) > _RARE:
        return True
    return len(row.token_ids) % _NOW_AND_THEN == 0
