"""Which cached block holds which tokens: a hash chain over token ids, and an index of keys a group.

A full block's key depends on every token before it and on the model (the `root`), so equal keys mean equal KV.
Knows block ids and keys only, never arrays.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.memory.blocks import BLOCK_TOKENS

KEY_BYTES = 32


def root_key(fingerprint: str) -> bytes:
    """The start of every chain of one model and KV format."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=KEY_BYTES).digest()


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block from its parent's key and its own `BLOCK_TOKENS` tokens."""
    return hashlib.blake2b(
        array("q", token_ids).tobytes(), key=parent, digest_size=KEY_BYTES
    ).digest()


class KeyChain:
    """The keys of one sequence's full blocks, computed once each as its tokens become known."""

    __slots__ = ("_keys", "_root")

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._keys: list[bytes] = []

    def upto(self, token_ids: Sequence[int], num_blocks: int) -> list[bytes]:
        """The keys of the first `num_blocks` blocks of `token_ids`, which never change once hashed."""
        while len(self._keys) < num_blocks:
            start = len(self._keys) * BLOCK_TOKENS
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(
                block_key(parent, token_ids[start : start + BLOCK_TOKENS])
            )
        return self._keys[:num_blocks]

    def parent_of(self, block: int) -> bytes:
        """The key before block number `block`."""
        return self._keys[block - 1] if block else self._root


class PrefixIndex:
    """The blocks of one group by key. A key names at most one block, and a block has at most one key."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def block(self, key: bytes) -> int | None:
        return self._blocks.get(key)

    def key(self, block_id: int) -> bytes | None:
        return self._keys.get(block_id)

    def add(self, key: bytes, block_id: int) -> bool:
        """Register a block; False if the key is known already, or the block has another."""
        if key in self._blocks or block_id in self._keys:
            return False
        self._blocks[key], self._keys[block_id] = block_id, key
        return True

    def remove_block(self, block_id: int) -> bytes | None:
        """Forget a block; returns its key."""
        key = self._keys.pop(block_id, None)
        if key is not None:
            del self._blocks[key]
        return key

    def block_ids(self) -> list[int]:
        return list(self._keys)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a prompt left what was cached: at `position` came `token_id`, and the cache had `cached_token_id`."""

    position: int
    token_id: int
    cached_token_id: int


class BlockHistory:
    """The tokens that last followed each key, kept to explain misses. Bounded: the oldest entries are dropped."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._children: dict[bytes, bytes] = {}  # a block's tokens in 4 bytes each

    def record(self, parent: bytes, token_ids: Sequence[int]) -> None:
        self._children.pop(parent, None)
        self._children[parent] = array("i", token_ids).tobytes()
        if len(self._children) > self._capacity:
            del self._children[next(iter(self._children))]

    def divergence(
        self,
        parent: bytes,
        token_ids: Sequence[int],
        start: int,
    ) -> Divergence | None:
        """Compare the tokens from `start` on with what was cached after `parent`; None if nothing was, or all agree."""
        cached = array("i", self._children.get(parent, b""))
        for offset, (token, other) in enumerate(zip(token_ids, cached, strict=False)):
            if token != other:
                return Divergence(start + offset, token, other)
        return None
