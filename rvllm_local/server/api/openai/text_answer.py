"""The answer to a completion: plain text, after the prompt's if the client wants it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.conversation.calls import Ended, Outcome, TextCall
from rvllm_local.server.api.openai.answer import (
    Chunk,
    CompletionAnswer,
    finish_reason,
)
from rvllm_local.server.api.openai.text_logprobs import TextLogprobs, prompt_rows
from rvllm_local.text.tools import ContentDelta
from rvllm_local.types import TokenLogprob


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: TextLogprobs = field(default_factory=TextLogprobs)
    scores: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a prompt's log-probabilities are told.

    `echoes` puts them before the answer's own, `is_shown` gives them apart.
    """

    echoes: bool = False
    is_shown: bool = False


class TextAnswer(CompletionAnswer):
    """Choices of a completion. With `echo`, each begins with its prompt's text."""

    id_prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self,
        call: TextCall,
        echo: bool,
        scoring: Scoring,
        wants_usage: bool,
        wants_timings: bool = False,
    ) -> None:
        super().__init__(wants_usage, wants_timings)
        self._call, self._echo, self._scoring = call, echo, scoring
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)

    def first_chunk(self, index: int) -> Chunk:
        text = self._prompt(index) if self._echo else ""
        self._choices[index].text.append(text)
        return _chunk(index, text)

    def take(self, outcome: Outcome) -> list[Chunk]:
        choice = self._choices[outcome.index]
        if isinstance(outcome, Ended):
            choice.finish_reason = finish_reason(outcome)
            chunk = _chunk(outcome.index, "")
            chunk["finish_reason"] = choice.finish_reason
            return [chunk]
        chunks = []
        if outcome.prompt_logprobs:
            chunks = self._scored(outcome.index, outcome.prompt_logprobs)
            if not outcome.pieces and not outcome.logprobs:
                return chunks
        texts = [
            piece.text for piece in outcome.pieces if isinstance(piece, ContentDelta)
        ]
        choice.text.extend(texts)
        chunk = _chunk(outcome.index, "".join(texts))
        tokens = self.generation.served.tokens
        chunk["logprobs"] = choice.logprobs.add(outcome.logprobs, tokens)
        return [*chunks, chunk]

    def _scored(self, index: int, scores: Sequence[TokenLogprob | None]) -> list[Chunk]:
        """The chunks of more of a prompt's scores, which all its choices share."""
        tokens = self.generation.served.tokens
        token_ids = self.generation.prompt_token_ids(index)
        shows_special = not isinstance(self._prompt_of(index), str)
        chunks = []
        for sibling in self.generation.siblings(index):
            choice, chunk = self._choices[sibling], _chunk(sibling, "")
            start = len(choice.scores)
            choice.scores.extend(scores)
            if self._scoring.echoes:
                chunk["logprobs"] = choice.logprobs.add_prompt(
                    token_ids[start : start + len(scores)],
                    scores,
                    tokens,
                    shows_special,
                )
            if self._scoring.is_shown:
                chunk["prompt_logprobs"] = prompt_rows(scores, tokens)
            if self._scoring.echoes or self._scoring.is_shown:
                chunks.append(chunk)
        return chunks

    def choices(self) -> list[dict[str, Any]]:
        choices = []
        for index in range(self.generation.num_choices):
            choice = self._choices[index]
            chunk = _chunk(index, "".join(choice.text))
            chunk["logprobs"] = choice.logprobs.whole()
            chunk["finish_reason"] = choice.finish_reason
            if self._scoring.is_shown:
                tokens = self.generation.served.tokens
                chunk["prompt_logprobs"] = prompt_rows(choice.scores, tokens)
            choices.append(chunk)
        return choices

    def _prompt(self, index: int) -> str:
        """The text of the prompt that a choice goes on from."""
        prompt = self._prompt_of(index)
        if isinstance(prompt, str):
            return prompt
        return self.generation.served.tokens.decode(prompt, skip_special=False)

    def _prompt_of(self, index: int) -> str | tuple[int, ...]:
        return self._call.prompts[index // self._call.params.n]


def _chunk(index: int, text: str) -> Chunk:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}
