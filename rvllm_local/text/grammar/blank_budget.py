"""Bounds the blanks between the values of a whole JSON document.

A grammar bounds one gap. A weak model fills every gap of a long document, and no grammar
can count over all of them. So a second matcher, of the same grammar without blanks, reads
along: what it does not take is a blank between values. Once there were too many, a token
has to be one that both matchers take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rvllm_local.text.grammar.continuation import (
    NOTHING,
    Continuation,
    Tokenize,
    TokenTexts,
    after_value,
    laid_out,
)
from rvllm_local.text.grammar.layout import BLANKS as _BLANK_BYTES
from rvllm_local.text.grammar.layout import Layout

if TYPE_CHECKING:
    import llguidance

# Of llguidance's JSON: blanks in every gap, up to so many; or none.
BLANKS = {"whitespace_pattern": "[ \\t\\n]{1,40}"}
_NO_BLANKS = {"whitespace_flexible": False}
MAX_BLANKS = 1000  # outside of strings, in a document and what stands around it
_OPTION, _COMPACT_OPTION = (json.dumps(option)[1:-1] for option in (BLANKS, _NO_BLANKS))


def compact_form(grammar: str) -> str | None:
    """The grammars without blanks between values; None if they have none to bound."""
    rows = json.loads(grammar)["grammars"]
    has_blanks = False
    compact = []
    for row in rows:
        bare = _compact(row)
        has_blanks = has_blanks or bare != row
        compact.append(bare)
    if not has_blanks:
        return None
    return json.dumps({"grammars": compact})


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    bare = dict(row)
    if "lark_grammar" in row:
        bare["lark_grammar"] = row["lark_grammar"].replace(_OPTION, _COMPACT_OPTION)
    schema = row.get("json_schema")
    if isinstance(schema, Mapping) and BLANKS.items() <= schema["x-guidance"].items():
        options = {**schema["x-guidance"], **_NO_BLANKS}
        del options["whitespace_pattern"]
        bare["json_schema"] = {**schema, "x-guidance": options}
    return bare


class BlankTokens:
    """The tokens of one vocabulary, by what blanks they hold."""

    def __init__(
        self, tokens: Sequence[bytes], special: Sequence[int], tokenize: Tokenize
    ) -> None:
        hidden = frozenset(special)
        self._tokens = tokens
        self.of_byte: dict[int, int] = {}
        self.most_blanks = 0
        self._with_blanks: set[int] = set()
        for token, spelled in enumerate(tokens):
            if token in hidden:
                continue
            if len(spelled) == 1:
                self.of_byte.setdefault(spelled[0], token)
            solid = spelled.translate(None, _BLANK_BYTES)
            num_blanks = len(spelled) - len(solid)
            if num_blanks:
                self._with_blanks.add(token)
                self.most_blanks = max(self.most_blanks, num_blanks)
        self.texts = TokenTexts(tokens, self.of_byte, tokenize)

    def has_blanks(self, token: int) -> bool:
        """True if the token's text holds a blank."""
        return token in self._with_blanks

    def spelled(self, token: int) -> bytes:
        """The token's bytes."""
        return self._tokens[token]


class BoundedMatcher:
    """A matcher of llguidance, and the one without blanks beside it, if there is one.

    It has those methods of `LLMatcher` that this package calls. `num_blanks` were taken
    already.
    """

    def __init__(
        self,
        inner: llguidance.LLMatcher,
        compact: llguidance.LLMatcher | None,
        tokens: BlankTokens,
        num_blanks: int = 0,
        layout: Layout | None = None,
    ) -> None:
        self._layout = layout or Layout()
        self._inner = inner
        self._compact = compact
        self._tokens = tokens
        self._num_blanks = num_blanks
        self.compute_ff_tokens = inner.compute_ff_tokens
        self.is_accepting = inner.is_accepting
        self.is_error = inner.is_error
        self.is_stopped = inner.is_stopped
        self.get_error = inner.get_error
        self.stop_reason = inner.stop_reason
        self.validate_tokens = inner.validate_tokens

    def compute_bitmask(self) -> bytes:
        """The allowed tokens, one bit each."""
        mask = self._inner.compute_bitmask()
        # One token more must not go beyond the bound.
        has_room = self._num_blanks + self._tokens.most_blanks <= MAX_BLANKS
        if has_room or self._compact is None:
            return mask
        import numpy as np  # late: many import this module for a name

        compact = self._compact.compute_bitmask()
        both = np.frombuffer(mask, np.uint8) & np.frombuffer(compact, np.uint8)
        if self._compact.is_error() or not both.any():
            return mask  # a valid document goes before a short one
        return both.tobytes()

    def compute_compact_ff_tokens(self) -> list[int]:
        """The tokens that come next if no blank does, as far as there is no choice."""
        if self._compact is None:
            return []
        tokens: list[int] = self._compact.compute_ff_tokens()
        return [] if self._compact.is_error() else tokens

    def laid_out(self) -> Continuation:
        """What is forced but for blanks, with those that the document has had."""
        if self._compact is None:
            return NOTHING
        return laid_out(self._compact, self._layout, self._tokens.texts)

    def after_value(self) -> Continuation:
        """What comes next if the value that is being written ends here."""
        if self._compact is None:
            return NOTHING
        return after_value(self._compact, self._layout, self._tokens.texts)

    def consume_token(self, token: int) -> bool:
        """Take a token. False if the grammar does not allow it."""
        if self._compact is not None:
            num_blanks = self._num_blanks
            is_followed = self._count(self._compact, token)
            spelled = self._tokens.spelled(token)
            self._layout.take(spelled)
            if self._num_blanks > num_blanks and spelled[-1] in _BLANK_BYTES:
                self._layout.leave_string()
            if not is_followed:
                # It has lost the thread; each gap is bounded still.
                self._compact = None
        return self._inner.consume_token(token)

    def _count(self, compact: llguidance.LLMatcher, token: int) -> bool:
        """Let the other matcher read along, and count the blanks that it does not take.

        False if it cannot follow.
        """
        has_blanks = self._tokens.has_blanks(token)
        if not has_blanks or compact.validate_tokens([token]) == 1:
            return compact.consume_token(token)
        for byte in self._tokens.spelled(token):
            single = self._tokens.of_byte.get(byte)
            is_taken = single is not None and compact.validate_tokens([single]) == 1
            if single is not None and is_taken:
                compact.consume_token(single)
            elif byte in _BLANK_BYTES:
                self._num_blanks += 1
            else:
                return False
        return True

    def deep_copy(self) -> BoundedMatcher:
        """A matcher that goes its own way from here."""
        compact = self._compact
        if compact is not None:
            compact = compact.deep_copy()
        inner = self._inner.deep_copy()
        layout = self._layout.copy()
        return BoundedMatcher(inner, compact, self._tokens, self._num_blanks, layout)
