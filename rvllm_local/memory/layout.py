"""How a model's layers share arenas, and how a byte budget becomes blocks.

Layers with the same KV shape and window form a group: one arena, one pool, one block table a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import blocks_for


@dataclass(frozen=True, slots=True)
class LayerSlot:
    """Where one model layer keeps its KV: the group, and the layer's place inside its arena."""

    group: int
    layer: int


@dataclass(frozen=True, slots=True)
class StateSlot:
    """Where a recurrent layer keeps its arrays among all of a sequence's: `count` of them from `first` on."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The groups of a model, and each layer's slot (None for layers that keep nothing).

    With `nesting` a layer may have several slots: it says for each layer how many follow each other, 0 for one alone.
    `state_bytes` is what the recurrent layers keep of one sequence.
    """

    groups: tuple[KVShape, ...]
    slots: tuple[LayerSlot | StateSlot | None, ...]
    nesting: tuple[int, ...] = ()
    state_bytes: int = 0

    @property
    def has_state(self) -> bool:
        """True when some layers are recurrent."""
        return any(isinstance(slot, StateSlot) for slot in self.slots)

    @property
    def has_attention(self) -> bool:
        """Some layers keep KV."""
        return any(isinstance(slot, LayerSlot) for slot in self.slots)

    def blocks_needed(self, num_tokens: int, chunk: int) -> tuple[int, ...]:
        """Most blocks a sequence of `num_tokens` holds at once, by group, when prefilled in chunks of `chunk`."""
        return tuple(
            window_blocks(shape.window, num_tokens, chunk) for shape in self.groups
        )

    def sequence_bytes(self, num_tokens: int, chunk: int) -> int:
        """Arena bytes of one sequence of `num_tokens`."""
        needed = self.blocks_needed(num_tokens, chunk)
        return sum(
            count * shape.block_bytes
            for count, shape in zip(needed, self.groups, strict=True)
        )

    def split_budget(
        self,
        budget: int,
        context: int,
        max_rows: int,
        chunk: int,
    ) -> tuple[int, ...]:
        """Blocks for each group (the scratch block included) so that all arenas fit in `budget` bytes.

        Windowed groups never need more than `max_rows` windows; the rest goes to full attention.
        Raises `MemoryBudgetError` when not even one block a group fits.
        """
        useful = [max_rows * count + 1 for count in self.blocks_needed(context, chunk)]
        low, high = 0, context * max_rows
        while low < high:  # the most tokens, all sequences together, whose blocks fit
            middle = (low + high + 1) // 2
            if self._total_bytes(self._blocks_at(middle, useful)) <= budget:
                low = middle
            else:
                high = middle - 1
        blocks = self._blocks_at(low, useful)
        smallest = self._total_bytes([2] * len(self.groups))
        if smallest > budget or min(blocks) < 2:
            raise MemoryBudgetError(
                f"a KV budget of {budget} bytes is too small: one block for each layer takes {smallest} bytes; "
                "raise kv_memory"
            )
        return tuple(blocks)

    def _blocks_at(self, num_tokens: int, useful: Sequence[int]) -> list[int]:
        return [max(2, min(most, blocks_for(num_tokens) + 1)) for most in useful]

    def _total_bytes(self, blocks: Sequence[int]) -> int:
        return sum(
            count * shape.block_bytes
            for count, shape in zip(blocks, self.groups, strict=True)
        )


def window_blocks(
    window: int | None,
    num_tokens: int,
    chunk: int,
) -> int:
    """Most blocks one sequence holds at once in a group with this window."""
    whole = blocks_for(num_tokens)
    if window is None:
        return whole
    return min(whole, blocks_for(window - 1 + chunk) + 1)
