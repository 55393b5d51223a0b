"""How a model's layers share arenas, and how a byte budget becomes blocks.

Layers with the same KV shape and window form a group. It has one arena, one pool and,
for each sequence, one block table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import blocks_for

_FEWEST_BLOCKS = 2  # of a group: the scratch block and one more


@dataclass(frozen=True, slots=True)
class LayerSlot:
    """Where one model layer keeps its KV: its group, and its number in the group's arena."""

    group: int
    layer: int


@dataclass(frozen=True, slots=True)
class StateSlot:
    """Which of a sequence's arrays a recurrent layer keeps: `count` from `first` on."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The groups of a model, and its layers' slots.

    slots: None for a layer that keeps nothing.
    nesting: for a model whose layers may have several slots, how many slots each layer
        has; 0 for a single one that stands in no list.
    state_bytes: the recurrent layers keep so much of one sequence.
    """

    groups: tuple[KVShape, ...]
    slots: tuple[LayerSlot | StateSlot | None, ...]
    nesting: tuple[int, ...] = ()
    state_bytes: int = 0

    @property
    def has_state(self) -> bool:
        """True if some layers are recurrent."""
        return any(isinstance(slot, StateSlot) for slot in self.slots)

    @property
    def has_attention(self) -> bool:
        """True if some layers keep KV."""
        return any(isinstance(slot, LayerSlot) for slot in self.slots)

    def ordered(self) -> KVLayout:
        """The same with groups in an order that depends on what they are alone.

        So parts of one model that hold the same kinds of layers agree on it.
        """
        order = sorted(range(len(self.groups)), key=lambda group: self.kinds()[group])
        slots: list[LayerSlot | StateSlot | None] = []
        for slot in self.slots:
            if isinstance(slot, LayerSlot):
                slots.append(LayerSlot(order.index(slot.group), slot.layer))
            else:
                slots.append(slot)
        groups = tuple(self.groups[group] for group in order)
        return dataclasses.replace(self, groups=groups, slots=tuple(slots))

    def kinds(self) -> list[str]:
        """What each group is, whatever the number of its layers, in words."""
        kinds = []
        for shape in self.groups:
            alike = dataclasses.replace(shape, num_layers=1)
            kinds.append(repr(alike))
        return kinds

    def blocks_needed(self, num_tokens: int, chunk: int) -> tuple[int, ...]:
        """The most blocks that a sequence of `num_tokens` holds at once, by group.

        It is prefilled in chunks of `chunk` tokens.
        """
        blocks = []
        for shape in self.groups:
            blocks.append(window_blocks(shape.window, num_tokens, chunk))
        return tuple(blocks)

    def sequence_bytes(self, num_tokens: int, chunk: int) -> int:
        """Arena bytes of one sequence of `num_tokens`."""
        needed = self.blocks_needed(num_tokens, chunk)
        return self.total_bytes(needed)

    def total_bytes(self, blocks: Sequence[int]) -> int:
        """Arena bytes of so many blocks of each group."""
        total = 0
        for count, shape in zip(blocks, self.groups, strict=True):
            total += count * shape.block_bytes
        return total

    def split_budget(
        self,
        budget: int,
        context: int,
        max_rows: int,
        chunk: int,
    ) -> tuple[int, ...]:
        """Blocks for each group, the scratch block included, that fit in `budget` bytes.

        Windowed groups never need more than `max_rows` windows. Full attention gets the
        rest. Raises `MemoryBudgetError` if not even one block a group fits.
        """
        useful = []  # more blocks than these are never used
        for count in self.blocks_needed(context, chunk):
            useful.append(max_rows * count + 1)
        # The most tokens, all sequences together, whose blocks fit.
        low = 0
        high = context * max_rows
        while low < high:
            middle = (low + high + 1) // 2
            blocks = _blocks_at(middle, useful)
            if self.total_bytes(blocks) <= budget:
                low = middle
            else:
                high = middle - 1
        smallest = self.total_bytes([_FEWEST_BLOCKS] * len(self.groups))
        if smallest > budget:
            raise MemoryBudgetError(
                f"a KV budget of {budget} bytes is too small: "
                f"one block for each layer takes {smallest} bytes; raise kv_memory"
            )
        return tuple(_blocks_at(low, useful))


def _blocks_at(num_tokens: int, useful: Sequence[int]) -> list[int]:
    """Blocks for each group that serve `num_tokens` tokens."""
    count = blocks_for(num_tokens) + 1
    blocks = []
    for most in useful:
        blocks.append(max(_FEWEST_BLOCKS, min(most, count)))
    return blocks


def window_blocks(
    window: int | None,
    num_tokens: int,
    chunk: int,
) -> int:
    """The most blocks that one sequence holds at once in a group with this window."""
    all_blocks = blocks_for(num_tokens)
    if window is None:
        return all_blocks
    seen_blocks = blocks_for(window - 1 + chunk)
    return min(all_blocks, seen_blocks + 1)
