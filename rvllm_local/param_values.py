"""Checks the values of sampling parameters, and makes plain ones of them.

Every function raises `ParameterError` that names the parameter, the value and what is
allowed.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from rvllm_local.errors import ParameterError

MAX_STOP_STRINGS = 64
MAX_STOP_TOKENS = 64
MAX_STOP_LENGTH = 1024  # characters; each token is held against all beginnings
MAX_INTEGER = 2**53  # what every format on the way carries exactly


def integer(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int, numpy's integers among them."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParameterError(name, f"{name} must be an integer, not {shown(value)}")
    whole = int(value)
    if not low <= whole <= high:
        raise ParameterError(
            name, f"{name} must be between {low} and {high}, not {shown(whole)}"
        )
    return whole


def number(
    name: str, value: Any, low: float, high: float, *, open_low: bool = False
) -> float:
    """The value as a float, numpy's numbers among them."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParameterError(name, f"{name} must be a number, not {shown(value)}")
    exact: Any = value
    if not low <= exact <= high or (open_low and exact == low):  # NaN is in no range
        bracket = "(" if open_low else "["
        raise ParameterError(
            name, f"{name} must be in {bracket}{low}, {high}], not {shown(value)}"
        )
    return float(exact)


def stop_strings(stop: Any) -> tuple[str, ...]:
    """The stop strings as a tuple; None is none."""
    if stop is None:
        return ()
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, Iterable):
        raise ParameterError(
            "stop", f"stop must be text or a list of texts, not {shown(stop)}"
        )
    strings = tuple(texts)
    if len(strings) > MAX_STOP_STRINGS:
        raise ParameterError(
            "stop",
            f"stop has {len(strings)} strings; at most {MAX_STOP_STRINGS} are allowed",
        )
    if any(not isinstance(text, str) or not text for text in strings):
        raise ParameterError("stop", "stop must hold non-empty strings")
    longest = max(map(len, strings), default=0)
    if longest > MAX_STOP_LENGTH:
        raise ParameterError(
            "stop",
            f"a stop string has {longest} characters; at most {MAX_STOP_LENGTH} are "
            "allowed",
        )
    return tuple(str(text) for text in strings)


def stop_tokens(token_ids: Any) -> tuple[int, ...]:
    """The stop tokens as a tuple; None is none."""
    if token_ids is None:
        return ()
    if isinstance(token_ids, str) or not isinstance(token_ids, Iterable):
        raise ParameterError(
            "stop_token_ids",
            f"stop_token_ids must be a list of token ids, not {shown(token_ids)}",
        )
    tokens = []
    for token in token_ids:
        tokens.append(integer("stop_token_ids", token, 0, MAX_INTEGER))
    if len(tokens) > MAX_STOP_TOKENS:
        raise ParameterError(
            "stop_token_ids",
            f"stop_token_ids holds {len(tokens)} tokens; at most {MAX_STOP_TOKENS} are "
            "allowed",
        )
    return tuple(tokens)


def biases(values: Any) -> dict[int, float]:
    """A copy of `logit_bias`; None is none."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ParameterError(
            "logit_bias",
            f"logit_bias must map token ids to numbers, not {shown(values)}",
        )
    return {
        integer("logit_bias", token_id, 0, MAX_INTEGER): number(
            "logit_bias", bias, -100.0, 100.0
        )
        for token_id, bias in values.items()
    }


def shown(value: Any) -> str:
    """A value as an error shows it: not longer than a line takes."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.80}"
