"""Keeps states of recurrent layers on disk, as records beside the blocks.

A record stands under the key of the block that ends where the state does. Knows no
sequence.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence

from rvllm_local.engine.disk_reader import DiskReader
from rvllm_local.memory.disk_cache import BlockStore
from rvllm_local.memory.state import Arrays, StateSnapshots
from rvllm_local.memory.state_record import (
    StateForm,
    decode_state,
    encode_state,
    form_of,
)

_CONVERSATION_STATES = 3  # that are kept of one: the others are the first to go
_MOST_TURNS = 4096  # states whose part in a conversation is remembered
logger = logging.getLogger(__name__)


class StateTier:
    """Writes chosen snapshots to the block store and reads them again.

    A model that holds states of another `form` than at its start keeps none on disk.
    """

    def __init__(
        self,
        snapshots: StateSnapshots,
        store: BlockStore,
        reader: DiskReader,
        form: StateForm,
    ) -> None:
        self._snapshots = snapshots
        self._store = store
        self._reader = reader
        self._form = form
        self._unspilled: OrderedDict[bytes, None] = OrderedDict()
        # States at the turns of conversations: those of one may stand for another.
        self._turns: OrderedDict[bytes, None] = OrderedDict()
        self._has_warned = False
        snapshots.before_evict = self._before_evict

    @property
    def has_idle_work(self) -> bool:
        return bool(self._unspilled)

    @property
    def num_unspilled(self) -> int:
        """Snapshots that are still to be written."""
        return len(self._unspilled)

    def keep(self, key: bytes) -> None:
        """The snapshot under this key is worth a record: idle steps write it."""
        if key in self._snapshots and not self.contains(key):
            self._unspilled[key] = None

    def keep_turn(self, key: bytes) -> None:
        """As `keep`, for a state that the conversation's next turns may replace."""
        self.keep(key)
        self._turns[key] = None
        if len(self._turns) > _MOST_TURNS:
            self._turns.popitem(last=False)

    def retire_before(self, chain: Sequence[bytes]) -> None:
        """The turns of a conversation but for the last ones are the first to go."""
        turns = [key for key in chain if key in self._turns]
        for key in turns[:-_CONVERSATION_STATES]:
            del self._turns[key]
            self._unspilled.pop(key, None)
            self._store.retire(_stored_key(key))

    def contains(self, key: bytes) -> bool:
        return self._store.contains(_stored_key(key))

    def is_read(self, key: bytes) -> bool:
        """The record was read; if not, it is being read now."""
        stored_key = _stored_key(key)
        if self._reader.has(stored_key):
            return True
        self._reader.request(stored_key)
        return False

    def take(self, key: bytes) -> Arrays | None:
        """A state that `is_read`; None if its record is no good, which removes it."""
        stored_key = _stored_key(key)
        record = self._reader.take(stored_key)
        if record is None:
            return None
        try:
            arrays = decode_state(record, self._form)
        except ValueError:
            self._store.remove(stored_key)
            return None
        self._snapshots.put(key, arrays)
        return arrays

    def idle(self) -> bool:
        """Write one state out. False when the store's queue is full."""
        key = next(iter(self._unspilled))
        arrays = self._snapshots.peek(key)
        if arrays is not None and not self._write(key, arrays):
            return False
        del self._unspilled[key]
        return True

    def forget(self) -> None:
        """Write nothing out of what is kept now."""
        self._unspilled.clear()

    def _before_evict(self, key: bytes, arrays: Arrays) -> None:
        if key in self._unspilled:
            del self._unspilled[key]
            self._write(key, arrays)

    def _write(self, key: bytes, arrays: Arrays) -> bool:
        """Hand a state to the store. False when the store's queue is full."""
        if self.contains(key):
            return True
        if form_of(arrays) != self._form:
            self._warn_of_form()
            return True
        return self._store.put(_stored_key(key), encode_state(arrays))

    def _warn_of_form(self) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            "the states of this model are not kept on disk: they have another form "
            "than at its start; its cache is in memory only"
        )


def _stored_key(key: bytes) -> bytes:
    """The key of a state in the store: no group's block has it."""
    digest = hashlib.blake2b(b"state", key=key, digest_size=len(key))
    return digest.digest()
