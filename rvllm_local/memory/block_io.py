"""What moves whole blocks between an arena and the host; the attention back ends implement it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BlockIO(Protocol):
    """Whole blocks as bytes: all layers, keys, values and scales of one block, in arena order."""

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """The content of each block, after everything that was described before this call has been written."""

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write saved contents into blocks, before anything that is described after this call reads them.

        Raises `ValueError` for a payload of the wrong size.
        """

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, `(source, destination)` each."""
