"""Code is written in plain statements: few tokens a line, few a function, full names.

A bar on lines alone can be met by writing densely. This one cannot. Tokens are those of
code, without docstrings and comments.
"""

from __future__ import annotations

import ast
import bisect
import functools
import io
import statistics
import tokenize
from collections.abc import Iterator

from tests.house.sources import Module, functions, modules

MOST_TOKENS_A_LINE = 7.5  # the median over a room's files
MOST_TOKENS_A_FUNCTION = 300  # of its body
# Names that say nothing of what they hold.
EMPTY_NAMES = frozenset(
    ("asked", "chosen", "found", "known", "one", "own", "place", "wanted")
)
_NO_CODE = {
    tokenize.NL,
    tokenize.COMMENT,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
Holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(module: Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, Holder) and ast.get_docstring(node, False) is not None:
            first = node.body[0]
            lines |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    return lines


@functools.cache
def code_tokens(module: Module) -> list[tokenize.TokenInfo]:
    silent = docstring_lines(module)
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return [
        token
        for token in tokens
        if token.type not in _NO_CODE and token.start[0] not in silent
    ]


def tokens_a_line(tokens: list[tokenize.TokenInfo]) -> float:
    lines: set[int] = set()
    for token in tokens:
        lines |= set(range(token.start[0], token.end[0] + 1))
    return len(tokens) / len(lines)


def stored_names(module: Module) -> Iterator[str]:
    """Names of locals, attributes' targets aside, and of parameters."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def densities() -> dict[str, dict[str, float]]:
    """Tokens a line by room and file."""
    rooms: dict[str, dict[str, float]] = {}
    for module in modules().values():
        if tokens := code_tokens(module):
            rooms.setdefault(module.folder, {})[module.file] = tokens_a_line(tokens)
    return rooms


def large_functions() -> dict[str, list[str]]:
    """Functions above the bar, by room."""
    rooms: dict[str, list[str]] = {}
    for module in modules().values():
        starts = [token.start[0] for token in code_tokens(module)]
        for node in functions(module.tree):
            first, last = node.body[0].lineno, node.end_lineno or node.lineno
            before = bisect.bisect_left(starts, first)
            count = bisect.bisect_right(starts, last) - before
            if count > MOST_TOKENS_A_FUNCTION:
                text = f"{module.file}: {node.name} has {count} tokens"
                rooms.setdefault(module.folder, []).append(text)
    return rooms


def empty_names() -> dict[str, list[str]]:
    """Names that say nothing, by room."""
    rooms: dict[str, list[str]] = {}
    for module in modules().values():
        for name in sorted(EMPTY_NAMES & set(stored_names(module))):
            rooms.setdefault(module.folder, []).append(f"{module.file}: {name}")
    return rooms


def test_a_room_has_few_tokens_a_line() -> None:
    dense = {}
    for room, files in densities().items():
        median = statistics.median(files.values())
        if median > MOST_TOKENS_A_LINE:
            dense[room] = round(median, 2)
    assert dense == {}, "write plain statements, a step a line"


def test_a_function_has_few_tokens() -> None:
    assert large_functions() == {}, "find the step that wants its own function"


def test_a_name_says_what_it_holds() -> None:
    assert empty_names() == {}, "name the thing: a request, an index, a path"


def test_the_measure_counts_code_alone() -> None:
    text = (
        '"""A docstring."""\n\n# A comment.\nfirst = 1  # here, too\n\nsecond = f(2)\n'
    )
    module = Module("any", next(iter(modules().values())).path, text, ast.parse(text))
    assert len(code_tokens(module)) == 3 + 6
    assert tokens_a_line(code_tokens(module)) == 4.5
