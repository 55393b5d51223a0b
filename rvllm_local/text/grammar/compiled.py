"""Compiled grammars for one engine: made on the caller's thread, before a request reaches the engine's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rvllm_local.errors import ParameterError
from rvllm_local.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher


class Grammars:
    """Builds the compiler when the first grammar comes, which takes a fraction of a second. Safe from any thread."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer, self._vocab_size, self._eos = (
            tokenizer,
            vocab_size,
            tuple(eos_token_ids),
        )
        self._lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None

    def matchers(self, grammar: str, count: int) -> list[Matcher]:
        """One matcher for each of `count` choices. Raises `GrammarError`."""
        if not self._eos:
            raise ParameterError(
                "response_format",
                "this model names no end token, so no grammar can be enforced",
            )
        from rvllm_local.text.grammar.matcher import GrammarCompiler  # loads llguidance

        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(
                    self._tokenizer, self._vocab_size, self._eos, in_trial=True
                )
        first = self._compiler.compile(grammar)
        return [first, *(first.copy() for _ in range(count - 1))]
