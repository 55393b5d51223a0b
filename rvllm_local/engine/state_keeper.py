"""Decides where snapshots of recurrent states are taken, and which go to disk.

A state is large beside a block. So it is kept where a later prompt is likely to begin:
at the end of the system prompt and the tools, where prompts part, before the prefix
that opens an answer, and at an answer's end.
"""

from __future__ import annotations

from collections.abc import Sequence as Keys

from rvllm_local.engine.disk_tier import DiskTier
from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.tables import KVTables

# A template's last tokens open the answer: in the next turn others stand there.
_GENERATION_PREFIX = 16
_ANSWER_STATES = 2  # at the end of an answer: the last tokens may be written anew


class StateKeeper:
    """Takes the snapshots of a model with recurrent layers; of others it takes none."""

    def __init__(self, kv: KVTables, disk: DiskTier) -> None:
        self._kv = kv
        self._snapshots = kv.snapshots
        self._disk = disk

    def pauses(self, sequence: Sequence, keys: Keys[bytes]) -> tuple[int, ...]:
        """Positions at which the sequence's prefill pauses for a snapshot.

        `keys` are those of its blocks that could be cached.
        """
        if not self._kv.layout.has_state:
            return ()
        places = {self._parting(keys), _shared_end(sequence), _before_answer(sequence)}
        return tuple(sorted(places))

    def _parting(self, keys: Keys[bytes]) -> int:
        """Where the prompt leaves what is cached."""
        also_at = None
        if self._kv.layout.has_attention and self._disk.store is not None:
            also_at = self._disk.contains
        return self._kv.longest_attended(keys, also_at) * BLOCK_TOKENS

    def keep(self, sequence: Sequence, keys: Keys[bytes]) -> None:
        """Take a snapshot at the end of the last of `keys`.

        The sequence stands there, or has passed it in its latest step.
        """
        if self._snapshots is None:
            return
        position = len(keys) * BLOCK_TOKENS
        state = sequence.tables.state.before(sequence.num_computed - position)
        if state is None:
            return
        key = keys[-1]
        self._snapshots.add(key, state)
        if position > sequence.num_prefilled:
            self._keep_answer(sequence, key)
        elif position in sequence.pauses:
            self._keep_prompt(sequence, key, position)

    def _keep_answer(self, sequence: Sequence, key: bytes) -> None:
        """An answer's latest states stand for its earlier ones."""
        assert self._snapshots is not None
        sequence.answer_states.append(key)
        if len(sequence.answer_states) > _ANSWER_STATES:
            self._snapshots.discard(sequence.answer_states.pop(0))

    def _keep_prompt(self, sequence: Sequence, key: bytes, position: int) -> None:
        if self._disk.states is None:
            return
        is_turn = position == _before_answer(sequence)
        if is_turn and position != _shared_end(sequence):
            self._disk.states.keep_turn(key)
        else:
            self._disk.states.keep(key)

    def end(self, sequence: Sequence) -> None:
        """The sequence is over: its answer's last states are worth a record."""
        if self._disk.states is None or not sequence.num_published:
            return
        for key in sequence.answer_states:
            self._disk.states.keep_turn(key)
        chain = sequence.keys.upto(sequence.token_ids, sequence.num_published)
        self._disk.states.retire_before(chain)
        sequence.answer_states.clear()


def _shared_end(sequence: Sequence) -> int:
    """The last block's end in what other conversations begin with as well."""
    return sequence.request.num_shared // BLOCK_TOKENS * BLOCK_TOKENS


def _before_answer(sequence: Sequence) -> int:
    """The last block's end before the prefix that opens the answer."""
    num_before = max(0, sequence.num_prompt - _GENERATION_PREFIX)
    return num_before // BLOCK_TOKENS * BLOCK_TOKENS
