"""What a request must respect; fixed once an engine is up, so that any thread and any process may check it."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.types import Request


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request must respect; fixed once the engine is up, so any thread may read it."""

    vocab_size: int
    context_length: int
    arena_tokens: int  # the longest sequence that the KV arenas can ever hold
    eos_token_ids: tuple[int, ...] = ()
    max_open: int = (
        2**31
    )  # choices, running and waiting, above which new ones are refused
    adapters: tuple[str, ...] = ()  # names that a request may ask for

    def check(self, request: Request) -> int:
        """Return the most tokens, prompt and output, of this request; raise if it can never be served."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise ParameterError(
                "prompt", "the prompt is empty; give at least one token"
            )
        wrong = next(
            (token for token in prompt if not 0 <= token < self.vocab_size), None
        )
        if wrong is not None:
            raise ParameterError(
                "prompt",
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}",
            )
        wrong = next(
            (token for token in params.logit_bias if token >= self.vocab_size), None
        )
        if wrong is not None:
            raise ParameterError(
                "logit_bias",
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}",
            )
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise ParameterError(
                "adapter",
                f"there is no adapter {request.adapter[:80]!r}; loaded are {known}",
            )
        if params.n > self.max_open:
            raise ParameterError(
                "n",
                f"n is {params.n}, and at most {self.max_open} choices may be open at once; ask for fewer",
            )
        if len(prompt) >= self.context_length:
            raise ContextOverflowError(
                "prompt",
                f"the prompt has {len(prompt)} tokens, and the context of {self.context_length} leaves no room for an "
                "answer; shorten it",
            )
        total = min(len(prompt) + params.max_tokens, self.context_length)
        if total > self.arena_tokens:
            raise ContextOverflowError(
                "max_tokens",
                f"prompt and max_tokens come to {total} tokens, and the KV arena holds {self.arena_tokens}; "
                "ask for less or raise kv_memory",
            )
        return total
