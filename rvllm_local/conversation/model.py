"""What a conversation must know of the model that answers it."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.text.families import OutputStyle
from rvllm_local.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ConversationModel:
    """How a model reads and writes: its tokenizer and template, its tags, and how much it takes."""

    name: str
    tokenizer: Tokenizer
    style: OutputStyle
    limits: EngineLimits

    @property
    def max_prompt_bytes(self) -> int:
        """No prompt with more bytes than this can fit the context, whatever its tokens are."""
        return self.limits.context_length * self.tokenizer.longest_token
