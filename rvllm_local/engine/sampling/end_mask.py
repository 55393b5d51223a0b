"""The mask of a sequence that may not end yet."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from rvllm_local.types import SamplingParams


def mask_without_ends(
    params: SamplingParams,
    vocab_size: int,
    eos_token_ids: Collection[int],
) -> npt.NDArray[np.int32] | None:
    """All tokens but those that end a sequence: one bit a token, as a grammar's mask.

    None for a sequence that may end at once.
    """
    if not params.min_tokens:
        return None
    ends = set(params.stop_token_ids)
    if not params.ignore_eos:
        ends.update(eos_token_ids)
    num_words = -(-vocab_size // 32)
    bits = np.ones(num_words * 32, dtype=np.uint8)
    for token in ends:
        bits[token] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)
