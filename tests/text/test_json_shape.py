"""The shape of a JSON text, found without building it, against a plain reading sign by sign."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from rvllm_local.text import json_shape
from rvllm_local.text.json_shape import Shape, shape_of


def plainly(text: bytes) -> tuple[int, int]:
    """Values, and the deepest nesting."""
    values = depth = deepest = place = 0
    inside = False
    while place < len(text):
        sign = text[place : place + 1]
        if inside and sign == b"\\":
            place += 1
        elif sign == b'"':
            inside = not inside
        elif not inside:
            depth += (sign in b"[{") - (sign in b"]}")
            values += sign in b"[{,"
            deepest = max(deepest, depth)
        place += 1
    return values, deepest


def document(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 5 or kind < 0.3:
        return "".join(
            chance.choice('a"\\,[]{}\n:é1') for _ in range(chance.randrange(30))
        )
    if kind < 0.5:
        return [chance.random() * 100 for _ in range(chance.randrange(6))]
    if kind < 0.8:
        return [document(chance, depth + 1) for _ in range(chance.randrange(6))]
    return {
        str(document(chance, 9)): document(chance, depth + 1)
        for _ in range(chance.randrange(6))
    }


@pytest.mark.parametrize("block", [7, 64, 2**16])
def test_it_agrees_with_a_plain_reading(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_shape, "_BLOCK", block)
    chance = random.Random(1)
    for _ in range(200):
        text = json.dumps(document(chance)).encode()
        found = shape_of(text)
        assert (found.values + found.numbers, found.depth) == plainly(text)


def test_numbers_in_a_row_are_counted_apart() -> None:
    assert shape_of(b'{"prompt": [1, 2,-3,4.5], "a": {"b": 1, "c": [2,"x"]}}') == Shape(
        7, 3, 3
    )
    assert shape_of(b"") == Shape(0, 0, 0)
    assert shape_of(b'["\\\\", "]]]"]') == Shape(2, 0, 1)
