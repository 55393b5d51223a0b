"""The protocol that moves whole blocks between an arena and the host.

The attention back ends implement it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BlockIO(Protocol):
    """Whole blocks as bytes.

    They are all layers' keys, values and scales of one block, in arena order.
    """

    def save_blocks(self, group: int, block_ids: Sequence[int]) -> list[bytes]:
        """The content of each block.

        Everything that was described before this call has been written then.
        """

    def load_blocks(
        self,
        group: int,
        block_ids: Sequence[int],
        payloads: Sequence[bytes | bytearray],
    ) -> None:
        """Write saved contents into blocks.

        What is described after this call reads the new contents. Raises `ValueError`
        for a payload of the wrong size.
        """

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, `(source, destination)` each."""
