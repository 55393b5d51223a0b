"""How much a JSON text holds and how deep, without building any of it.

So what is too much never becomes objects. Building objects holds the interpreter's lock
from the first byte to the last; this reads in blocks, between which others run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BLOCK = 64 * 2**10  # bytes; some 0.3 ms
_QUOTE, _BACKSLASH, _COMMA, _BLANK, _MINUS = b'"\\, -'
_ZERO = np.uint8(ord("0"))
_OPENING, _CLOSING = b"{}"  # with bit 5 set, which turns the square brackets into these
_BIT_5 = np.uint8(0x20)


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a JSON text.

    `values` counts what lists and objects hold (an empty one as one), but for the
    `numbers` that follow one another in a list, as token ids do. `depth` is the deepest
    nesting.
    """

    values: int
    numbers: int
    depth: int


def shape_of(text: bytes) -> Shape:
    """The shape of a JSON text; of one that is no JSON, some numbers."""
    values = 0
    numbers = 0
    depth = 0
    deepest = 0
    inside = False
    escapes = False
    for start in range(0, len(text), _BLOCK):
        size = min(_BLOCK, len(text) - start)
        block = np.frombuffer(text, np.uint8, size, start)
        quotes, escapes = _quotes(block, escapes)
        in_string = np.logical_xor.accumulate(quotes)
        if inside:
            in_string = ~in_string
        inside = bool(in_string[-1])
        signs = block[~in_string & (block > _BLANK)]  # lines end below it
        folded = signs | _BIT_5
        opening = folded == _OPENING
        closing = folded == _CLOSING
        commas = signs == _COMMA
        between = _between_numbers(signs, commas)
        numbers += between
        values += int(np.count_nonzero(opening))
        values += int(np.count_nonzero(commas)) - between
        levels = np.cumsum(opening.astype(np.int32) - closing)
        if len(levels):
            deepest = max(deepest, depth + int(levels.max()))
            depth += int(levels[-1])
    return Shape(values, numbers, deepest)


def _quotes(block: np.ndarray, escapes: bool) -> tuple[np.ndarray, bool]:
    """Where strings begin or end, and whether the block's last backslash counts after it.

    `escapes` tells that a backslash before the block counts.
    """
    quotes = block == _QUOTE
    slashes = block == _BACKSLASH
    if not escapes and not slashes.any():
        return quotes, False
    # A sign is escaped if the run of backslashes before it is odd.
    indices = np.arange(len(block), dtype=np.int32)
    others = np.where(slashes, np.int32(-1 - escapes), indices)
    last_other = np.maximum.accumulate(others)
    is_odd = ((indices - last_other) & 1) == 1
    quotes[1:] &= ~is_odd[:-1]
    quotes[0] &= not escapes
    return quotes, bool(is_odd[-1])


def _between_numbers(signs: np.ndarray, commas: np.ndarray) -> int:
    """How many commas have a digit before them and the beginning of a number behind."""
    digits = (signs - _ZERO) < 10  # unsigned: all other signs are beyond
    before = digits[:-2]
    behind = digits[2:] | (signs[2:] == _MINUS)
    between = before & commas[1:-1] & behind
    return int(np.count_nonzero(between))
