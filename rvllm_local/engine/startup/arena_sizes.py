"""How many blocks the arenas of an engine have, and for how long a text."""

from __future__ import annotations

from rvllm_local.errors import ConfigError, MemoryBudgetError
from rvllm_local.memory.layout import KVLayout
from rvllm_local.options import EngineOptions

# When no budget is given: this, or one whole context if that is more.
_DEFAULT_KV_BYTES = 512 * 2**20
# What the self-check's two sequences take, and the scratch block.
FEWEST_BLOCKS = 4


def arena_blocks(
    layout: KVLayout,
    options: EngineOptions,
    context: int,
) -> tuple[int, ...]:
    """Blocks for each group's arena, the scratch block included."""
    budget = options.kv_memory or _default_budget(layout, context, options)
    blocks = layout.split_budget(
        budget, context, options.max_rows, options.prefill_chunk
    )
    if not options.self_check or min(blocks) >= FEWEST_BLOCKS:
        return blocks
    smallest = FEWEST_BLOCKS * sum(shape.block_bytes for shape in layout.groups)
    if smallest > budget:
        raise MemoryBudgetError(
            f"a KV budget of {budget} bytes is too small: the check at the start needs "
            f"{FEWEST_BLOCKS} blocks for each layer, which take {smallest} bytes; "
            "raise kv_memory"
        )
    return tuple(max(count, FEWEST_BLOCKS) for count in blocks)


def usable_context(length: int, options: EngineOptions) -> int:
    """The context to serve of a model that has `length` positions.

    Raises `ConfigError`.
    """
    if options.context_length is None:
        return length
    if options.context_length > length:
        raise ConfigError(
            f"context_length cannot be {options.context_length}: the model has {length} "
            "positions; give at most that many, or leave it out"
        )
    return options.context_length


def _default_budget(
    layout: KVLayout,
    context: int,
    options: EngineOptions,
) -> int:
    scratch_blocks = sum(shape.block_bytes for shape in layout.groups)
    context_bytes = (
        layout.sequence_bytes(context, options.prefill_chunk) + scratch_blocks
    )
    default_bytes = max(context_bytes, _DEFAULT_KV_BYTES)
    return min(default_bytes, context_bytes * options.max_rows)
