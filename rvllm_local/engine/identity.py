"""What an engine is told about its model, beyond how to run it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What a core is told about its model: `roots` start every prefix key, by the adapter that KV is computed with (None
    for none); `memory` are the plan's lines in bytes.
    """

    eos_token_ids: frozenset[int]
    roots: dict[str | None, bytes]
    memory: dict[str, int]

    def number_of(self, adapter: str | None) -> int:
        """The number under which the model's adapted layers know an adapter; 0 is none."""
        return list(self.roots).index(adapter)
