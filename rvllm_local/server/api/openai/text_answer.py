"""The answer to a completion: plain text, after the prompt's if the client wants it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rvllm_local.conversation.calls import Ended, Outcome, TextCall
from rvllm_local.server.api.logprobs import finite, token_text
from rvllm_local.server.api.openai.answer import (
    Chunk,
    CompletionAnswer,
    finish_reason,
)
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tools import ContentDelta
from rvllm_local.types import TokenLogprob


class _Logprobs:
    """OpenAI's older shape: lists side by side, with each token's offset in the text."""

    def __init__(self) -> None:
        self._offset = 0
        self._lists: dict[str, list[Any]] = {}

    def add(
        self, drawn: Sequence[TokenLogprob], tokenizer: Tokenizer
    ) -> dict[str, list[Any]] | None:
        """The lists of these tokens alone; None for none."""
        if not drawn:
            return None
        new: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in drawn:
            text = token_text(tokenizer, token.token_id)
            new["tokens"].append(text)
            new["token_logprobs"].append(finite(token.logprob))
            new["top_logprobs"].append(_alternatives(tokenizer, token))
            new["text_offset"].append(self._offset)
            self._offset += len(text)
        for name, values in new.items():
            self._lists.setdefault(name, []).extend(values)
        return new

    def whole(self) -> dict[str, list[Any]] | None:
        return self._lists or None


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: _Logprobs = field(default_factory=_Logprobs)
    finish_reason: str = ""


class TextAnswer(CompletionAnswer):
    """Choices of a completion. With `echo`, each begins with its prompt's text."""

    id_prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, call: TextCall, echo: bool, wants_usage: bool) -> None:
        super().__init__(wants_usage)
        self._call, self._echo = call, echo
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
        texts = [
            piece.text for piece in outcome.pieces if isinstance(piece, ContentDelta)
        ]
        choice.text.extend(texts)
        chunk = _chunk(outcome.index, "".join(texts))
        tokenizer = self.generation.served.tokenizer
        chunk["logprobs"] = choice.logprobs.add(outcome.logprobs, tokenizer)
        return [chunk]

    def choices(self) -> list[dict[str, Any]]:
        choices = []
        for index in range(self.generation.num_choices):
            choice = self._choices[index]
            chunk = _chunk(index, "".join(choice.text))
            chunk["logprobs"] = choice.logprobs.whole()
            chunk["finish_reason"] = choice.finish_reason
            choices.append(chunk)
        return choices

    def _prompt(self, index: int) -> str:
        """The text of the prompt that a choice goes on from."""
        prompt = self._call.prompts[index // self._call.params.n]
        if isinstance(prompt, str):
            return prompt
        return self.generation.served.tokenizer.decode(prompt, skip_special=False)


def _chunk(index: int, text: str) -> Chunk:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}


def _alternatives(tokenizer: Tokenizer, drawn: TokenLogprob) -> dict[str, float]:
    return {
        token_text(tokenizer, token_id): finite(logprob)
        for token_id, logprob in drawn.top
    }
