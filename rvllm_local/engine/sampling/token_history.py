"""What biases and earlier tokens do to one sequence's logits, kept up to date by token.

Knows token ids and numbers only. A step's cost does not grow with the output: what an
earlier step worked out is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowEdits:
    """Edits of one row's logits, each token once: `x -> scaled(x + bias) - subtract`.

    Positive logits are divided by `repetition`, negative ones multiplied (the CTRL paper's rule).
    """

    tokens: npt.NDArray[np.int64]
    bias: FloatArray
    repetition: FloatArray
    subtract: FloatArray

    def apply(self, logits: FloatArray) -> None:
        """Edit a row of logits `[vocab]` in place."""
        values = logits[self.tokens] + self.bias
        logits[self.tokens] = (
            np.where(values > 0, values / self.repetition, values * self.repetition)
            - self.subtract
        )


class TokenHistory:
    """The edits of one sequence. Raises `ParameterError` for a biased token id outside the vocabulary."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        outside = next(
            (token for token in params.logit_bias if token >= vocab_size), None
        )
        if outside is not None:
            raise ParameterError(
                "logit_bias",
                f"token id {outside} is outside the vocabulary of {vocab_size}",
            )
        self._params = params
        seen = set(prompt_token_ids) if params.repetition_penalty != 1.0 else set()
        tokens = [*params.logit_bias, *sorted(seen.difference(params.logit_bias))]
        self._index_of = {token: index for index, token in enumerate(tokens)}
        self._counts = [0] * len(tokens)  # in the output
        self._tokens = np.zeros(max(64, 2 * len(tokens)), dtype=np.int64)
        self._numbers = np.zeros(
            (3, len(self._tokens)), dtype=np.float32
        )  # bias, repetition, subtract
        self._tokens[: len(tokens)] = tokens
        self._numbers[0, : len(params.logit_bias)] = list(params.logit_bias.values())
        self._numbers[1] = [
            params.repetition_penalty if token in seen else 1.0
            for token in self._tokens.tolist()
        ]

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
            index = self._index_of[token] = len(self._counts)
            self._counts.append(0)
            if index == len(self._tokens):
                self._double()
            self._tokens[index] = token
        self._counts[index] += 1
        by_count = params.frequency_penalty * self._counts[index]
        self._numbers[1, index] = params.repetition_penalty
        self._numbers[2, index] = by_count + params.presence_penalty

    def _double(self) -> None:
        """Make room for as many tokens again."""
        self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
        more = np.zeros_like(self._numbers)
        self._numbers = np.concatenate((self._numbers, more), axis=1)

    def edits(self) -> RowEdits:
        """The edits of the next token's logits; valid until the next `push`."""
        count = len(self._counts)
        return RowEdits(self._tokens[:count], *self._numbers[:, :count])
