"""What a request must respect.

It is fixed once an engine is up, so that any thread and any process may check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.types import Request


@dataclass(frozen=True, slots=True)
class Pools:
    """What a model makes of a text that it reads: a vector, or scores of a pair.

    `dimensions` are a vector's numbers, or the labels that are scored. `prompts` are
    texts that its makers put before an input, by name. `pair_form` is how a pair is put
    to a model that was trained to answer a question about it: what goes before, what
    goes before the first text, before the second, and behind.
    """

    kind: Literal["embed", "score"]
    dimensions: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    pair_form: tuple[str, str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The limits of a request.

    Fixed once the engine is up, so any thread may read it.
    """

    vocab_size: int
    context_length: int
    arena_tokens: int  # the longest sequence that the KV arenas can ever hold
    eos_token_ids: tuple[int, ...] = ()
    max_open: int = 2**31  # open choices above which new ones are refused
    adapters: tuple[str, ...] = ()  # names that a request may ask for
    # A prefix is reused where a state was kept: it helps to know where others begin.
    keeps_states: bool = False
    pools: Pools | None = None  # of a model that writes nothing

    def check(self, request: Request) -> int:
        """Raise if the request can never be served; return its `max_total`.

        Whoever takes a request in from a caller does this, once. Raises
        `ParameterError` and `ContextOverflowError`.
        """
        self._check_task(request)
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise ParameterError(
                "prompt", "the prompt is empty; give at least one token"
            )
        self._check_tokens("prompt", prompt)
        self._check_tokens("logit_bias", params.logit_bias)
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        if request.adapter is not None and request.adapter not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise ParameterError(
                "adapter",
                f"there is no adapter {request.adapter[:80]!r}; loaded are {loaded}",
            )
        if params.n > self.max_open:
            raise ParameterError(
                "n",
                f"n is {params.n}, and at most {self.max_open} choices may be open at "
                "once; ask for fewer",
            )
        self._check_length(request)
        return self.max_total(request)

    def _check_task(self, request: Request) -> None:
        """The model does what is asked for: it writes, or reads alone."""
        if self.pools is not None and not request.is_read:
            made = "vectors" if self.pools.kind == "embed" else "scores of pairs"
            raise ParameterError(
                "model",
                f"this model writes no text, it makes {made}; ask a chat model",
            )
        if self.pools is None and request.is_read:
            raise ParameterError(
                "model",
                "this model writes text, and has no pooling that would make vectors; ask "
                "an embedding model",
            )

    def max_total(self, request: Request) -> int:
        """Tokens, prompt and output, at which an accepted request ends for length."""
        total = len(request.prompt_token_ids) + request.params.max_tokens
        return min(total, self.context_length)

    def _check_tokens(self, name: str, token_ids: Iterable[int]) -> None:
        for token in token_ids:
            if not 0 <= token < self.vocab_size:
                raise ParameterError(
                    name,
                    f"token id {token} is outside the vocabulary of {self.vocab_size}",
                )

    def _check_length(self, request: Request) -> None:
        num_prompt = len(request.prompt_token_ids)
        if request.is_read:
            if num_prompt > self.context_length:
                raise ContextOverflowError(
                    "input",
                    f"the text has {num_prompt} tokens, and the model reads at most "
                    f"{self.context_length}; shorten it",
                    (num_prompt, self.context_length),
                )
            return
        if num_prompt > self.context_length or (
            num_prompt == self.context_length and request.params.max_tokens > 0
        ):
            raise ContextOverflowError(
                "prompt",
                f"the prompt has {num_prompt} tokens, and the context of "
                f"{self.context_length} leaves no room for an answer; shorten it",
                (num_prompt, self.context_length - 1),
            )
        total = self.max_total(request)
        if total > self.arena_tokens:
            raise ContextOverflowError(
                "max_tokens",
                f"prompt and max_tokens come to {total} tokens, and the KV arena holds "
                f"{self.arena_tokens}; ask for less or raise kv_memory",
            )
