"""Facts about a model that an engine needs beside the means to run it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Facts about the model of one core.

    roots: start every prefix key, by the adapter that KV is computed with (None for none).
    memory: the plan's lines in bytes.
    """

    eos_token_ids: frozenset[int]
    roots: dict[str | None, bytes]
    memory: dict[str, int]

    def number_of(self, adapter: str | None) -> int:
        """The number of an adapter in the model's adapted layers; 0 is none."""
        names = list(self.roots)
        return names.index(adapter)
