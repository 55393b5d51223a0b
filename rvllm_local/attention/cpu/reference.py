"""The reference back end: plain MLX over an arena that the host can address.

New keys and values are stored through a numpy view of the arena, so nothing is ever
copied as a whole: those of a single token after its step, others layer by layer. A
context is read by gathering its blocks. Correct anywhere, tuned for the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rvllm_local.attention.cpu.context_copy import ContextCopy
from rvllm_local.attention.cpu.host_arena import HostArena
from rvllm_local.attention.cpu.mixed_session import MixedSession
from rvllm_local.attention.cpu.pending_kv import PendingKV
from rvllm_local.attention.cpu.session import ReferenceSession
from rvllm_local.attention.geometry import CallGeometry
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS


class ReferenceBackend:
    """Reads and writes the arenas with plain MLX operations."""

    name = "reference"
    prefill_grain = 1
    overlaps = False
    mixes = True
    verifies = True
    runs_by_layer = True
    num_dispatches = 0

    def __init__(self, arenas: Sequence[Arena], copy_tokens: int = 0) -> None:
        """Look at the arenas as the host sees them.

        The context of a prompt that prefills is kept densely as well, up to
        `copy_tokens`.
        """
        self._host: list[HostArena] = []
        # Counts of writes, by block.
        self._versions: list[npt.NDArray[np.int64]] = []
        self._copies: dict[int, ContextCopy] = {}
        self._pending: PendingKV | None = None
        # True if what is stored is what was computed.
        self._can_defer = True
        copy_blocks = copy_tokens // BLOCK_TOKENS
        for group, arena in enumerate(arenas):
            shape = arena.shape
            self._host.append(HostArena.of(arena))
            self._versions.append(np.zeros(arena.num_blocks, dtype=np.int64))
            if shape.window is None and copy_blocks > 0:
                self._copies[group] = ContextCopy(shape, copy_blocks)
            if shape.quantized or shape.key_dim != shape.value_dim:
                self._can_defer = False

    def begin(
        self, geometry: CallGeometry, *, by_row: bool = False
    ) -> ReferenceSession:
        self.flush()
        self._note_writes(geometry)
        copies: Mapping[int, ContextCopy] = {}
        if geometry.rows == 1:
            if geometry.query_len > 1:
                copies = self._copies_for(geometry)
            elif self._can_defer:
                # With more rows it costs more to put the tokens into the graph than to
                # wait for them.
                self._pending = PendingKV(geometry)
        return ReferenceSession(
            self._host,
            geometry,
            by_row=by_row,
            copies=copies,
            pending=self._pending,
        )

    def begin_mixed(
        self,
        geometry: CallGeometry,
        decode: CallGeometry,
        chunks: Sequence[CallGeometry],
    ) -> MixedSession:
        """Prepare a decode call that carries tokens of prompts and padding.

        Only the chunk with the longest context can read from the dense copy.
        """
        self.flush()
        self._note_writes(geometry)
        lengths = [int(chunk.context_lens[0]) for chunk in chunks]
        sessions = []
        for index, chunk in enumerate(chunks):
            copies = None
            if index == lengths.index(max(lengths)):
                copies = self._copies_for(chunk)
            sessions.append(self._session(chunk, copies))
        return MixedSession(
            self._session(geometry),
            self._session(decode),
            sessions,
        )

    def _session(
        self,
        geometry: CallGeometry,
        copies: Mapping[int, ContextCopy] | None = None,
    ) -> ReferenceSession:
        return ReferenceSession(
            self._host,
            geometry,
            by_row=False,
            copies=copies or {},
        )

    def _note_writes(self, geometry: CallGeometry) -> None:
        for versions, view in zip(self._versions, geometry.groups, strict=True):
            versions[view.write_blocks] += 1

    def _copies_for(self, geometry: CallGeometry) -> dict[int, ContextCopy]:
        """The groups whose context this one-row call can read from a dense copy."""
        copies = {}
        for group, copy in self._copies.items():
            table = geometry.groups[group].tables[0]
            if copy.begin(table, self._versions[group]):
                copies[group] = copy
        return copies

    def flush(self) -> None:
        """Store what still waits.

        Everything that reads or writes the arenas begins with this.
        """
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.store([arena.data for arena in self._host])

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """Each block as bytes: its elements, then its scales."""
        self.flush()
        arena = self._host[group]
        payloads = []
        for block in block_ids:
            payload = arena.save(block)
            payloads.append(payload)
        return payloads

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write saved bytes into blocks.

        Raises `ValueError` for a payload of the wrong size.
        """
        self.flush()
        self._versions[group][list(block_ids)] += 1
        for block, payload in zip(block_ids, payloads, strict=True):
            self._host[group].load(block, payload)

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in place."""
        self.flush()
        for _, destination in pairs:
            self._versions[group][destination] += 1
        self._host[group].copy(pairs)
