"""What biases and earlier tokens do to one sequence's logits, kept up to date by token.

Knows token ids and numbers only. A step's cost does not grow with the output: what an
earlier step worked out is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowEdits:
    """Edits of one row's logits, each token once: `x -> scaled(x + bias) - subtract`.

    `scaled` divides positive logits by `repetition`, and multiplies negative ones (the
    CTRL paper's rule).
    """

    tokens: npt.NDArray[np.int64]
    bias: FloatArray
    repetition: FloatArray
    subtract: FloatArray

    def apply(self, logits: FloatArray) -> None:
        """Edit a row of logits `[vocab]` in place."""
        values = logits[self.tokens] + self.bias
        smaller = values / self.repetition
        larger = values * self.repetition
        scaled = np.where(values > 0, smaller, larger)
        logits[self.tokens] = scaled - self.subtract


class EditsAhead(NamedTuple):
    """The edits after some tokens that may yet come."""

    row_edits: RowEdits

    def edits(self) -> RowEdits:
        return self.row_edits


class TokenHistory:
    """The edits of one sequence.

    Raises `ParameterError` for a biased token id outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        for token in params.logit_bias:
            if token >= vocab_size:
                raise ParameterError(
                    "logit_bias",
                    f"token id {token} is outside the vocabulary of {vocab_size}",
                )
        self._params = params
        biases = list(params.logit_bias.values())
        seen: set[int] = set()
        if params.repetition_penalty != 1.0:
            seen = set(prompt_token_ids)
        unbiased = seen.difference(params.logit_bias)
        tokens = [*params.logit_bias, *sorted(unbiased)]
        count = len(tokens)
        self._index_of = {token: index for index, token in enumerate(tokens)}
        self._counts = [0] * count  # in the output
        capacity = max(64, 2 * count)
        self._tokens = np.zeros(capacity, dtype=np.int64)
        # Bias, repetition and what is subtracted: [3, capacity].
        self._numbers = np.zeros((3, capacity), dtype=np.float32)
        self._tokens[:count] = tokens
        self._numbers[0, : len(biases)] = biases
        self._numbers[1] = 1.0
        for index, token in enumerate(tokens):
            if token in seen:
                self._numbers[1, index] = params.repetition_penalty

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
    ) -> TokenHistory | None:
        """The history that these parameters ask for, if they ask for one."""
        if not params.logit_bias and not params.has_penalties:
            return None
        return cls(params, prompt_token_ids, vocab_size)

    def push(self, token: int) -> None:
        """Take one more token of the output."""
        params = self._params
        if not params.has_penalties:
            return
        index = self._index_of.get(token)
        if index is None:
            index = len(self._counts)
            self._index_of[token] = index
            self._counts.append(0)
            if index == len(self._tokens):
                self._double()
            self._tokens[index] = token
        self._counts[index] += 1
        by_count = params.frequency_penalty * self._counts[index]
        self._numbers[1, index] = params.repetition_penalty
        self._numbers[2, index] = by_count + params.presence_penalty

    def ahead(self, tokens: Sequence[int]) -> list[EditsAhead]:
        """The edits after each of `tokens`, which are not taken."""
        counts = dict(self._index_of), list(self._counts)
        arrays = self._tokens, self._numbers
        self._tokens = self._tokens.copy()
        self._numbers = self._numbers.copy()
        ahead = []
        for token in tokens:
            self.push(token)
            count = len(self._counts)
            tokens_now = self._tokens[:count].copy()
            numbers_now = self._numbers[:, :count].copy()
            ahead.append(EditsAhead(RowEdits(tokens_now, *numbers_now)))
        self._index_of, self._counts = counts
        self._tokens, self._numbers = arrays
        return ahead

    def _double(self) -> None:
        """Make room for as many tokens again."""
        more_tokens = np.zeros_like(self._tokens)
        more_numbers = np.zeros_like(self._numbers)
        self._tokens = np.concatenate((self._tokens, more_tokens))
        self._numbers = np.concatenate((self._numbers, more_numbers), axis=1)

    def edits(self) -> RowEdits:
        """The edits of the next token's logits; valid until the next `push`."""
        count = len(self._counts)
        return RowEdits(self._tokens[:count], *self._numbers[:, :count])
