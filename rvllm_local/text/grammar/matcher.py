"""Compiles grammars for one tokenizer, and tells which tokens may come next in an output.

Built on llguidance, under limits of size and time. It knows tokens and bytes; it does not
know what a grammar is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import llguidance
import numpy as np
import numpy.typing as npt

from rvllm_local.errors import GrammarError
from rvllm_local.text.grammar.blank_budget import (
    BlankTokens,
    BoundedMatcher,
    compact_form,
)
from rvllm_local.text.grammar.byte_vocabulary import ByteVocabulary
from rvllm_local.text.grammar.continuation import NOTHING, Continuation
from rvllm_local.text.grammar.limits import matcher_error, new_matcher
from rvllm_local.text.grammar.tag_tokens import with_tokens
from rvllm_local.text.grammar.thinking_budget import Thinking, ThinkingTokens
from rvllm_local.text.grammar.timed_compilation import TimedCompilation
from rvllm_local.text.grammar.trial_process import Vocabulary
from rvllm_local.text.grammar.trials import Trials
from rvllm_local.text.tokenizer import Tokenizer

_MAX_TAG = 64  # characters of a tag around thoughts
_MOST_TAGS = 16  # pairs of them that are remembered
Mask = npt.NDArray[np.int32]
T = TypeVar("T")


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer. Several threads may use it at once.

    `vocab_size` is the width of the model's logits, which may exceed the tokenizer's
    vocabulary: the ids between are never allowed. `eos_token_ids` are the tokens that end
    an output.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        in_trial: bool = False,
    ) -> None:
        """With `in_trial` grammars are tried in a process of their own before."""
        if not eos_token_ids:
            raise GrammarError(
                "the model names no end token, so that no grammar could ever end",
                "model",
            )
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = tuple(sorted(set(eos_token_ids)))
        self._vocabulary = ByteVocabulary(tokenizer, vocab_size, self._eos)
        self._backend = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self._vocabulary), eos_token=list(self._eos)
        )
        self._trial: Callable[[str], None] | None = None
        if in_trial:
            vocabulary = Vocabulary(
                self._vocabulary.tokens,
                self._vocabulary.special_token_ids,
                list(self._eos),
            )
            self._trial = Trials(vocabulary).check
        self._blanks = BlankTokens(
            self._vocabulary.tokens,
            self._vocabulary.special_token_ids,
            self._backend.tokenize_bytes,
        )
        self._timed = TimedCompilation()
        self._thinking: dict[tuple[str, str], ThinkingTokens] = {}

    def compile(self, grammar: str) -> Matcher:
        """A matcher at the start of `grammar`.

        Raises `GrammarError` within two seconds if it cannot be made, `QueueFullError` if
        too many others are being made.
        """
        try:
            parts: dict[str, Any] = json.loads(grammar)
            reasoning = parts.get("reasoning")
            if reasoning is not None:
                _check_thinking(reasoning)
            parameter = str(parts.get("parameter", "response_format"))
            text = with_tokens(parts, self._tokenizer, self._eos)
            compact_text = compact_form(text)
        except (
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            RecursionError,
        ) as error:
            raise GrammarError(
                "the grammar is not in the form that this module writes"
            ) from error
        try:
            inner = self._compiled(text)
            compact = None
            if compact_text is not None:
                compact = self._compiled(compact_text)
        except GrammarError as error:
            raise GrammarError(str(error), parameter) from error
        thinking = None
        if reasoning is not None:
            thinking = self._new_thinking(reasoning)
        matcher = BoundedMatcher(inner, compact, self._blanks)
        return Matcher(matcher, self._eos, thinking)

    def validate(self, grammar: str) -> None:
        """Raise what `compile` would raise."""
        self.compile(grammar)

    def _compiled(self, text: str) -> llguidance.LLMatcher:
        """A new matcher, tried in another process first."""
        if self._trial is not None:
            self._trial(text)
        return self._timed.run(lambda: self._compile(text))

    def _compile(self, text: str) -> llguidance.LLMatcher:
        matcher = new_matcher(self._backend, text)
        error = matcher_error(matcher)
        if error is not None:
            raise GrammarError(error)
        return matcher

    def _new_thinking(self, settings: Mapping[str, Any]) -> Thinking:
        key = settings["start"], settings["end"]
        tokens = self._thinking.get(key)
        if tokens is None:
            tokens = ThinkingTokens.of(
                *key,
                self._tokenizer,
                self._vocabulary.tokens,
                self._vocabulary.special_token_ids,
            )
            if len(self._thinking) >= _MOST_TAGS:
                self._thinking.clear()
            self._thinking[key] = tokens
        return Thinking(tokens, settings["max_tokens"], settings["starts_inside"])


class Matcher:
    """Follows one output through a grammar. Not safe to share between threads."""

    def __init__(
        self,
        inner: BoundedMatcher,
        eos: tuple[int, ...],
        thinking: Thinking | None,
    ) -> None:
        self._inner = inner
        self._eos = eos
        self._thinking = thinking  # None once it is over
        # Until the first token, and while a start tag of several tokens could still be the grammar's own text, the
        # output is in both: this is the grammar's side of it.
        self._rival = (
            None if thinking is None or thinking.is_inside else inner.deep_copy()
        )
        self._ended = False

    def mask_into(self, row: Mask) -> None:
        """Write the allowed tokens: bit `i % 32` of `row[i // 32]` for token `i`; `row` is [ceil(vocab / 32)].

        Raises `GrammarError` if no token is left, which fails the request and nothing else. Where only one text can
        follow, it comes in the tokens that it has by itself: a model would find as many others for it.
        """
        if self._thinking is None:
            forced = self.forced()
            if forced:
                _only(forced[0], row)
            else:
                self._write(self._inner, row)
        elif self._thinking.is_over:
            self._write(self._inner, row)
            self._thinking.allow_blank(row)
        elif self._rival is None:
            allowed = self._thinking.allowed()
            row[: allowed.size], row[allowed.size :] = allowed, 0
        else:
            allowed = self._thinking.allowed()
            self._write(self._rival, row)
            row[: allowed.size] |= allowed

    def forced(self) -> list[int]:
        """The next tokens, as far as the grammar leaves no choice; none within a thought."""
        if self._thinking is not None or self._ended:
            return []
        tokens = _guarded(self._inner.compute_ff_tokens)
        return [] if self._inner.is_error() else tokens

    def forced_compactly(self) -> list[int]:
        """As `forced`, were no blank to come between values; none if one must come."""
        if self._thinking is not None or self._ended:
            return []
        tokens = _guarded(self._inner.compute_compact_ff_tokens)
        return [] if self._inner.is_error() else tokens

    def laid_out(self) -> Continuation:
        """What is forced but for blanks, with those that the document has had."""
        if self._thinking is not None or self._ended:
            return NOTHING
        return _guarded(self._inner.laid_out)

    def after_value(self) -> Continuation:
        """What comes next if the value that is being written ends here."""
        if self._thinking is not None or self._ended:
            return NOTHING
        return _guarded(self._inner.after_value)

    def allows(self, token_id: int) -> bool:
        """True if the token may come next as text of the grammar."""
        if self._thinking is not None or self._ended or token_id in self._eos:
            return False
        return _guarded(lambda: self._inner.validate_tokens([token_id])) == 1

    @property
    def is_thinking(self) -> bool:
        """True while the output may be in a thought, which no grammar bounds."""
        return self._thinking is not None

    def _write(self, inner: BoundedMatcher, row: Mask) -> None:
        mask = np.frombuffer(_guarded(inner.compute_bitmask), dtype=np.int32)
        size = min(mask.size, row.size)
        row[:size], row[size:] = mask[:size], 0
        if inner.is_error():
            raise GrammarError(f"the grammar takes too much: {_first_line(inner)}")
        if not row.any():
            raise GrammarError(
                f"the output cannot go on within its grammar ({inner.stop_reason()})"
            )

    def advance(self, token_id: int) -> None:
        """Take the sampled token. Raises `GrammarError` if the grammar does not allow it."""
        if self._ended:
            raise GrammarError("the output has ended")
        if self._thinking is not None and not self._thinking.is_over:
            self._advance_thinking(self._thinking, token_id)
            return
        if self._thinking is not None:
            after, allowed = (
                self._thinking,
                self._inner.validate_tokens([token_id]) == 1,
            )
            if not allowed and after.takes_blank(token_id):
                return
            self._thinking = None
        if token_id in self._eos and self._inner.is_accepting():
            self._ended = True
        elif not _guarded(lambda: self._inner.consume_token(token_id)):
            raise GrammarError(f"token {token_id} is not allowed here")

    def _advance_thinking(self, thinking: Thinking, token_id: int) -> None:
        goes_on = thinking.advance(token_id)
        if goes_on and self._rival is not None:
            fits = (
                not thinking.is_inside and self._rival.validate_tokens([token_id]) == 1
            )
            self._rival = (
                self._rival if fits and self._rival.consume_token(token_id) else None
            )
        elif not goes_on:
            if self._rival is None:
                raise GrammarError(f"token {token_id} is not allowed here")
            self._inner, self._rival, self._thinking = self._rival, None, None
            self.advance(token_id)

    @property
    def is_accepting(self) -> bool:
        """True if the output may end here; only then are end tokens in the mask."""
        inner = (
            self._inner
            if self._thinking is None or self._thinking.is_over
            else self._rival
        )
        return inner is not None and not inner.is_error() and inner.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """True once nothing but an end token can follow, or one was taken."""
        return self._ended or (self._thinking is None and self._inner.is_stopped())

    def copy(self) -> Matcher:
        """A matcher that goes its own way from here."""
        twin = object.__new__(Matcher)
        twin._inner, twin._eos, twin._ended = (
            self._inner.deep_copy(),
            self._eos,
            self._ended,
        )
        twin._thinking = None if self._thinking is None else self._thinking.copy()
        twin._rival = None if self._rival is None else self._rival.deep_copy()
        return twin


def _only(token_id: int, row: Mask) -> None:
    """Allow one token."""
    word, bit = divmod(token_id, 32)
    row[:] = 0
    row.view(np.uint32)[word] = np.uint32(1 << bit)


def _check_thinking(settings: Any) -> None:
    """Raise `TypeError` unless the settings are what `with_reasoning` writes: a step of the engine trusts them."""
    match settings:
        case {
            "start": str(start),
            "end": str(end),
            "max_tokens": int() | None,
            "starts_inside": bool(),
        }:
            if 0 < len(start) <= _MAX_TAG and 0 < len(end) <= _MAX_TAG:
                return
    raise TypeError


def _guarded(call: Callable[[], T]) -> T:
    """A call into the library. A panic there ends one request, not the engine."""
    try:
        return call()
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise GrammarError("the grammar makes its library fail") from None


def _first_line(inner: BoundedMatcher) -> str:
    return inner.get_error().strip().split("\n", 1)[0][:300]
