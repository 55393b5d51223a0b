"""Tests wait for states, as long as a busy machine takes; no test waits by a short clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if "gpu" not in path.parts)
# Of httpx, whose own limit of five seconds is too short for a busy machine.
CALLS = {"Client", "AsyncClient", "delete", "get", "head", "post", "put", "stream"}


def calls_without_timeout(tree: ast.Module) -> list[int]:
    """Lines on which httpx is called without a limit."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        is_httpx = ast.unparse(node.func.value) == "httpx" and node.func.attr in CALLS
        if is_httpx and "timeout" not in {word.arg for word in node.keywords}:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_requests_have_a_limit_of_their_own(path: Path) -> None:
    assert calls_without_timeout(ast.parse(path.read_text())) == []


def test_a_call_without_a_limit_is_seen() -> None:
    text = "httpx.get(url)\nhttpx.post(url, timeout=60)\nclient.get(url)"
    assert calls_without_timeout(ast.parse(text)) == [1]
