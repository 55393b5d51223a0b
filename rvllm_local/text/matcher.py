"""Compiles grammars for one tokenizer, and follows outputs through them: which tokens may come next.

Built on llguidance, under limits of size and time. It knows tokens and bytes; what a grammar is for, it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import numpy as np
import numpy.typing as npt

from rvllm_local.errors import ParameterError
from rvllm_local.text.tokenizer import Tokenizer


class GrammarError(ParameterError):
    """A grammar cannot be compiled, is too large, or was not followed; the message says why."""


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer. Safe to use from several threads; one a model.

    `vocab_size` is the width of the model's logits, which may exceed the tokenizer's vocabulary: the ids between
    are never allowed. `eos_token_ids` are the tokens that end an output.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._eos = tuple(eos_token_ids)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, self._eos[0])), eos_token=list(self._eos)
        )

    def compile(self, grammar: str) -> Matcher:
        """A matcher at the start of `grammar`. Raises `GrammarError` within two seconds if it cannot be made."""
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError("response_format", matcher.get_error().splitlines()[0])
        return Matcher(matcher)

    def validate(self, grammar: str) -> None:
        """Raise what `compile` would raise."""
        self.compile(grammar)


class Matcher:
    """Follows one output through a grammar. Not safe to share between threads."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner

    def mask_into(self, row: npt.NDArray[np.int32]) -> None:
        """Write the allowed tokens: bit `i % 32` of `row[i // 32]` for token `i`; `row` is [ceil(vocab / 32)]."""
        mask = np.frombuffer(self._inner.compute_bitmask(), dtype=np.int32)
        row[:] = mask[: row.size]

    def advance(self, token_id: int) -> None:
        """Take the sampled token. Raises `GrammarError` if the grammar does not allow it."""
        if not self._inner.consume_token(token_id):
            raise GrammarError("response_format", f"token {token_id} is not allowed here")

    @property
    def is_accepting(self) -> bool:
        """True if the output may end here; only then are end tokens in the mask."""
        return self._inner.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """True once nothing but an end token can follow, or one was taken."""
        return self._inner.is_stopped()

    def copy(self) -> Matcher:
        """A matcher that goes its own way from here."""
        return Matcher(self._inner.deep_copy())


class _Vocabulary:
    """A tokenizer as llguidance wants to see it: bytes by token id."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        plain = [tokenizer.id_to_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = [token for token, text in enumerate(plain) if text is None]
        self.tokens = [
            tokenizer.decode([token], skip_special=False).encode() if t is None else t for token, t in enumerate(plain)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, bos=False)
