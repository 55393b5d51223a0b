"""The reference back end: plain MLX over an arena that the host can address.

New keys and values are stored through a numpy view of the arena, so nothing is ever
copied as a whole: those of a single token after its step, others layer by layer. A
context is read by gathering its blocks. Correct anywhere, tuned for the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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
    runs_by_layer = True
    num_dispatches = 0

    def __init__(self, arenas: Sequence[Arena], copy_tokens: int = 0) -> None:
        """`copy_tokens`: up to this length, the context of a prompt that prefills is kept densely as well."""
        self._host = [HostArena.of(arena) for arena in arenas]
        self._versions = [
            np.zeros(arena.num_blocks, dtype=np.int64) for arena in arenas
        ]  # counts of writes, by block
        self._copies = {
            group: ContextCopy(arena.shape, copy_tokens // BLOCK_TOKENS)
            for group, arena in enumerate(arenas)
            if arena.shape.window is None and copy_tokens >= BLOCK_TOKENS
        }
        self._pending: PendingKV | None = None
        plain = [
            not arena.shape.quantized and arena.shape.key_dim == arena.shape.value_dim
            for arena in arenas
        ]
        self._can_defer = all(plain)  # what is stored is what was computed

    def begin(
        self, geometry: CallGeometry, *, by_row: bool = False
    ) -> ReferenceSession:
        self.flush()
        self._note_writes(geometry)
        # With more rows, putting the tokens into the graph costs more than waiting for them.
        is_lone_token = geometry.rows == geometry.query_len == 1
        self._pending = pending = (
            PendingKV(geometry) if is_lone_token and self._can_defer else None
        )
        copies = (
            self._copies_for(geometry)
            if geometry.rows == 1 and geometry.query_len > 1
            else {}
        )
        return ReferenceSession(
            self._host,
            geometry,
            by_row=by_row,
            copies=copies,
            pending=pending,
        )

    def begin_mixed(
        self,
        geometry: CallGeometry,
        decode: CallGeometry,
        chunks: Sequence[CallGeometry],
    ) -> MixedSession:
        """Prepare a decode call whose further rows are the tokens of prompts' chunks, one geometry each, and padding."""
        self.flush()
        self._note_writes(geometry)
        lengths = [int(chunk.context_lens[0]) for chunk in chunks]
        longest = lengths.index(max(lengths)) if lengths else None
        return MixedSession(
            self._session(geometry),
            self._session(decode),
            *(
                self._session(part, self._copies_for(part) if i == longest else None)
                for i, part in enumerate(chunks)
            ),
        )

    def _session(
        self, geometry: CallGeometry, copies: Mapping[int, ContextCopy] | None = None
    ) -> ReferenceSession:
        return ReferenceSession(self._host, geometry, by_row=False, copies=copies or {})

    def _note_writes(self, geometry: CallGeometry) -> None:
        for versions, view in zip(self._versions, geometry.groups, strict=True):
            versions[view.write_blocks] += 1

    def _copies_for(self, geometry: CallGeometry) -> dict[int, ContextCopy]:
        """The groups whose context this one-row call can read from a dense copy."""
        return {
            group: copy
            for group, copy in self._copies.items()
            if copy.begin(geometry.groups[group].tables[0], self._versions[group])
        }

    def flush(self) -> None:
        """Store what still waits. Everything that reads or writes the arenas begins with this."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.store([arena.data for arena in self._host])

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """Each block as bytes: its elements, then its scales."""
        self.flush()
        arena = self._host[group]
        return [arena.save(block) for block in block_ids]

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
