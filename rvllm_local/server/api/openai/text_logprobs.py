"""OpenAI's older shape of log-probabilities: lists side by side, with offsets."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from rvllm_local.server.api.logprobs import finite, token_text
from rvllm_local.text.token_table import TokenTable
from rvllm_local.types import TokenLogprob

Lists = dict[str, list[Any]]


class TextLogprobs:
    """Those of one choice as they come, with each token's offset in the text."""

    def __init__(self) -> None:
        self._lists: Lists = {}
        self._offset = 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, drawn: Sequence[TokenLogprob], tokens: TokenTable) -> Lists | None:
        """The lists of these tokens alone; None for none."""
        if not drawn:
            return None
        new = _empty()
        for token in drawn:
            self._add_token(new, token.token_id, tokens, is_shown=False)
            new["token_logprobs"].append(finite(token.logprob))
            new["top_logprobs"].append(_alternatives(tokens, token))
        return self._joined(new)

    def add_prompt(
        self,
        token_ids: Sequence[int],
        scores: Sequence[TokenLogprob | None],
        tokens: TokenTable,
        shows_special: bool,
    ) -> Lists:
        """The lists of a prompt's tokens; the first one has no log-probability.

        With `shows_special`, special tokens are a part of the text.
        """
        new = _empty()
        for token_id, score in zip(token_ids, scores, strict=True):
            self._add_token(new, token_id, tokens, shows_special)
            if score is None:
                new["token_logprobs"].append(None)
                new["top_logprobs"].append(None)
            else:
                new["token_logprobs"].append(finite(score.logprob))
                new["top_logprobs"].append(_alternatives(tokens, score))
        return self._joined(new)

    def whole(self) -> Lists | None:
        """The lists of all tokens; None if there are none."""
        return self._lists or None

    def _add_token(
        self, new: Lists, token_id: int, tokens: TokenTable, is_shown: bool
    ) -> None:
        new["tokens"].append(token_text(tokens, token_id))
        new["text_offset"].append(self._offset)
        spelled = tokens.id_to_bytes(token_id)
        if spelled is not None:
            self._offset += len(self._characters.decode(spelled))
        elif is_shown:
            self._offset += len(tokens.decode([token_id], skip_special=False))

    def _joined(self, new: Lists) -> Lists:
        for name, values in new.items():
            self._lists.setdefault(name, []).extend(values)
        return new


def _empty() -> Lists:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _alternatives(tokens: TokenTable, drawn: TokenLogprob) -> dict[str, float]:
    """Log-probabilities by text; of tokens with one text, the most likely."""
    alternatives: dict[str, float] = {}
    for token_id, logprob in drawn.top:
        alternatives.setdefault(token_text(tokens, token_id), finite(logprob))
    return alternatives


def prompt_rows(
    scores: Sequence[TokenLogprob | None], tokens: TokenTable
) -> list[dict[str, Any] | None]:
    """A prompt's scores as vLLM gives them: by token id, None for the first token."""
    rows: list[dict[str, Any] | None] = []
    for score in scores:
        if score is None:
            rows.append(None)
            continue
        ranks = {token_id: index + 1 for index, (token_id, _) in enumerate(score.top)}
        row = {}
        for token_id, logprob in ((score.token_id, score.logprob), *score.top):
            row[str(token_id)] = {
                "logprob": finite(logprob),
                "rank": ranks.get(token_id),
                "decoded_token": token_text(tokens, token_id),
            }
        rows.append(row)
    return rows
