"""A pattern means the same to every reader, or less; or it is refused."""

from __future__ import annotations

import re

import pytest

from rvllm_local.text.grammar.regex import PatternError, portable


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^a+$", "^a+$"),
        ("(a|b){2,3}?", "(?:a|b){2,3}"),
        ("\\d\\D", r"[0-9][^\p{Nd}]"),
        ("[^\\w-]", r"[^\p{L}\p{N}\p{M}_\u{2d}]"),
        ("[\\S]", r"[[^\s\x1c-\x1f\u{85}\u{feff}]]"),
        (".", r"[^\n\r\u{2028}\u{2029}]"),
        ("\\u00e9\\x41\\t", r"\u{e9}\u{41}\t"),
        ("[a-c-]", r"[a-c\u{2d}]"),
        ("\\<&&", r"\u{3c}\u{26}\u{26}"),
    ],
)
def test_translations(pattern: str, expected: str) -> None:
    assert portable(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ('[^"]', r"[[^\u{22}]&&[^\x00-\x07\x0b\x0e-\x1f]]"),
        (
            "\\D.",
            r"[[^\p{Nd}]&&[^\x00-\x07\x0b\x0e-\x1f]][[^\n\r\u{2028}\u{2029}]&&[^\x00-\x07\x0b\x0e-\x1f]]",
        ),
        ("[\\0-a]", r"[[\x00-a]&&[^\x00-\x07\x0b\x0e-\x1f]]"),
        ("[a-c]\\w", "[a-c][0-9A-Za-z_]"),
        (
            "\\s",
            r"[[\t\n\x0b\x0c\r\x20\u{a0}\u{2028}\u{2029}]&&[^\x00-\x07\x0b\x0e-\x1f]]",
        ),
    ],
)
def test_in_a_json_string_no_class_holds_what_only_a_number_can_write(
    pattern: str, expected: str
) -> None:
    assert portable(pattern, in_json=True) == expected


def test_the_widest_reader_matches_at_least_as_much() -> None:
    assert portable("^\\d\\W.$", wide=True) == r"^[\p{Nd}][^0-9A-Za-z_][^\n]\n?$"
    assert (
        portable("[^\\s]", wide=True) == r"[^\t\n\x0b\x0c\r\x20\u{a0}\u{2028}\u{2029}]"
    )
    assert portable("^a[b-c]", wide=True) == portable("^a[b-c]")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "lookaround"),
        ("(?i)a", "flags"),
        ("(?<n>a)", "names"),
        ("(a)\\1", "escape"),
        ("\\bfoo", "escape"),
        ("\\p{L}", "escape"),
        ("a++", "possessive"),
        ("[a&&b]", "'&&'"),
        ("[[:alpha:]]", "must be escaped"),
        ("[]", "empty"),
        ("[a", "too early"),
        ("a{2", "must be escaped"),
        ("a{2000}", "repeats"),
        ("((a{1,100}){1,100}){1,100}", "count out"),
        ("(", "not a sound"),
        ("a**", "not a sound"),
        ("\\u12", "not a sound"),
        ("\\ud800", "surrogate"),
        ("x" * 5000, "5000 characters"),
        ("(" * 2000 + ")" * 2000, "not a sound"),
    ],
)
def test_refusals_say_why(pattern: str, why: str) -> None:
    with pytest.raises(PatternError, match=re.escape(why)):
        portable(pattern)
