"""Which cached block holds which tokens: a chain of hashes, and an index a group.

A full block's key depends on every token before it and on the model (the `root`), so
equal keys mean equal KV. Knows block ids and keys only, never arrays.
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
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=KEY_BYTES)
    return digest.digest()


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block from its parent's key and its `BLOCK_TOKENS` tokens."""
    content = array("q", token_ids).tobytes()
    digest = hashlib.blake2b(content, key=parent, digest_size=KEY_BYTES)
    return digest.digest()


class KeyChain:
    """The keys of one sequence's full blocks. Each is computed once."""

    __slots__ = ("_keys", "_root")

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._keys: list[bytes] = []

    def upto(self, token_ids: Sequence[int], num_blocks: int) -> list[bytes]:
        """The keys of the first `num_blocks` blocks of `token_ids`.

        Tokens never change once they were hashed.
        """
        for block in range(len(self._keys), num_blocks):
            start = block * BLOCK_TOKENS
            content = token_ids[start : start + BLOCK_TOKENS]
            key = block_key(self.parent_of(block), content)
            self._keys.append(key)
        return self._keys[:num_blocks]

    def parent_of(self, block: int) -> bytes:
        """The key before block number `block`."""
        if block == 0:
            return self._root
        return self._keys[block - 1]


class PrefixIndex:
    """The blocks of one group by key.

    A key names at most one block, and a block has at most one key.
    """

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
        """Register a block. False if the key or the block is registered already."""
        if key in self._blocks or block_id in self._keys:
            return False
        self._blocks[key] = block_id
        self._keys[block_id] = key
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
    """Where a prompt left what was cached.

    At `position` came `token_id`, and the cache had `cached_token_id`.
    """

    position: int
    token_id: int
    cached_token_id: int


class BlockHistory:
    """The tokens that last followed each key, to explain misses.

    At most `capacity` keys: the oldest is dropped.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._children: dict[bytes, bytes] = {}  # a block's tokens in 4 bytes each

    def record(self, parent: bytes, token_ids: Sequence[int]) -> None:
        self._children.pop(parent, None)
        self._children[parent] = array("i", token_ids).tobytes()
        if len(self._children) > self._capacity:
            oldest = next(iter(self._children))
            del self._children[oldest]

    def divergence(
        self,
        parent: bytes,
        token_ids: Sequence[int],
        start: int,
    ) -> Divergence | None:
        """Compare the tokens from `start` on with those that were cached after `parent`.

        None if nothing was cached, or all agree.
        """
        cached = array("i", self._children.get(parent, b""))
        position = start
        for token_id, cached_id in zip(token_ids, cached, strict=False):
            if token_id != cached_id:
                return Divergence(position, token_id, cached_id)
            position += 1
        return None
