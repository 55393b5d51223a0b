"""Log-probabilities of prompts: collected while a prompt is computed, kept by block.

Entry `i` of a prompt belongs to its token `i + 1`, whose probability follows from the
logits at position `i`. The first token has none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Rows

import numpy as np

from rvllm_local.engine.sampling.logprobs import TargetLogprobs, token_logprob
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.types import TokenLogprob

_MOST_BYTES = 16 * 2**20


class ScoreCache:
    """The entries of full blocks, by the block's key and the token behind the block.

    The KV of a cached prefix says nothing of its tokens' probabilities. So a scored
    request shares a block only if its entries are here too. The least recently used
    blocks go first.
    """

    def __init__(self, max_bytes: int = _MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._blocks: OrderedDict[tuple[bytes, int], TargetLogprobs] = OrderedDict()

    def get(
        self,
        key: bytes,
        next_token: int,
        num_top: int,
    ) -> TargetLogprobs | None:
        """A block's entries with at least `num_top` alternatives, if they are kept."""
        entries = self._blocks.get((key, next_token))
        if entries is None or entries.top_ids.shape[1] < num_top:
            return None
        self._blocks.move_to_end((key, next_token))
        return entries

    def add(
        self,
        key: bytes,
        next_token: int,
        entries: TargetLogprobs,
    ) -> None:
        """Keep a block's entries."""
        before = self._blocks.pop((key, next_token), None)
        if before is not None:
            self._num_bytes -= _num_bytes(before)
        self._blocks[(key, next_token)] = entries
        self._num_bytes += _num_bytes(entries)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._blocks.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)

    def count_blocks(
        self,
        keys: Rows[bytes],
        tokens: Rows[int],
        num_top: int,
    ) -> int:
        """How many of a prompt's leading blocks have their entries here."""
        for block, key in enumerate(keys):
            next_token = tokens[(block + 1) * BLOCK_TOKENS]
            if self.get(key, next_token, num_top) is None:
                return block
        return len(keys)

    def hand_out(
        self,
        scores: PromptScores,
        keys: Rows[bytes],
        start: int,
    ) -> None:
        """The blocks of these keys are reused from position `start` on."""
        for block in range(start // BLOCK_TOKENS, len(keys)):
            next_token = scores.token_after(block)
            entries = self.get(keys[block], next_token, scores.num_top)
            assert entries is not None, "a block was reused without its scores"
            scores.put(block * BLOCK_TOKENS, entries)

    def keep(
        self,
        scores: PromptScores,
        keys: Rows[bytes],
        start: int,
    ) -> None:
        """The blocks of these keys are full and were scored from `start` on."""
        for block in range(start // BLOCK_TOKENS, len(keys)):
            self.add(keys[block], scores.token_after(block), scores.block(block))

    def clear(self) -> None:
        self._blocks.clear()
        self._num_bytes = 0


class PromptScores:
    """The entries of one prompt, and how far they were sent."""

    def __init__(self, token_ids: Rows[int], num_top: int) -> None:
        count = len(token_ids) - 1
        self._token_ids = token_ids
        self.num_top = num_top
        self._entries = TargetLogprobs(
            np.zeros(count, np.float32),
            np.zeros((count, num_top), np.int32),
            np.zeros((count, num_top), np.float32),
        )
        self._num_sent = 0  # tokens, the first one included

    def put(self, start: int, entries: TargetLogprobs) -> None:
        """Take the entries from `start` on."""
        end = start + len(entries.logprobs)
        self._entries.logprobs[start:end] = entries.logprobs
        self._entries.top_ids[start:end] = entries.top_ids[:, : self.num_top]
        self._entries.top_logprobs[start:end] = entries.top_logprobs[:, : self.num_top]

    def token_after(self, number: int) -> int:
        """The first token behind a block."""
        return self._token_ids[(number + 1) * BLOCK_TOKENS]

    def block(self, number: int) -> TargetLogprobs:
        """A copy of the entries of one full block, all of which were put."""
        start = number * BLOCK_TOKENS
        return self._entries.rows(start, start + BLOCK_TOKENS)

    def take(self, num_computed: int) -> tuple[TokenLogprob | None, ...]:
        """The records of tokens not sent yet, once `num_computed` entries were put."""
        records: list[TokenLogprob | None] = []
        end = min(num_computed + 1, len(self._token_ids))
        for position in range(self._num_sent, end):
            records.append(self._record(position) if position else None)
        self._num_sent = max(self._num_sent, end)
        return tuple(records)

    def _record(self, position: int) -> TokenLogprob:
        entry = position - 1
        ids = self._entries.top_ids[entry].tolist()
        values = self._entries.top_logprobs[entry].tolist()
        return token_logprob(
            self._token_ids[position],
            float(self._entries.logprobs[entry]),
            tuple(zip(ids, values, strict=True)),
        )


def _num_bytes(entries: TargetLogprobs) -> int:
    return sum(part.nbytes for part in entries)
