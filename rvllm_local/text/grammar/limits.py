"""Makes llguidance's matchers, under limits of time and memory."""

from __future__ import annotations

from typing import Any

import llguidance

# Fuel bounds the time, and the states bound the memory (1 to 2 kB each), that one
# grammar may take. Neither bounds what happens before a lexer runs: see `trials`.
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 25_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}


def new_matcher(
    tokenizer: llguidance.LLTokenizer, grammar: str
) -> llguidance.LLMatcher:
    """A matcher that has computed what may come first; `matcher_error` judges it."""
    limits = llguidance.LLParserLimits(**_LIMITS)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def matcher_error(matcher: llguidance.LLMatcher) -> str | None:
    """Why a new matcher's grammar cannot be enforced; None if it can."""
    if matcher.is_error():
        reason = matcher.get_error().strip().split("\n", 1)[0][:300]
        return f"the grammar cannot be enforced: {reason}"
    if matcher.is_stopped() and not matcher.is_accepting():
        return "the grammar cannot be enforced: nothing satisfies it"
    return None
