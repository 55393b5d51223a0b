"""Makes a kernel's text short: MLX copies and compares it at every launch.

That costs the host time. Comments, indentation and the branches that the launch's
macros exclude go. Every condition names such macros alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_KEPT = "// Metal injects:"  # MLX looks for these names in the body


@dataclass(slots=True)
class _Condition:
    """An open `#if`: whether its current branch is read, and whether one is done."""

    is_read: bool
    is_done: bool  # no further branch is read


def compact(text: str, defines: Mapping[str, object]) -> str:
    """`text` without what the compiler would skip."""
    return "\n".join(_lines(text, defines)) + "\n"


def _lines(text: str, defines: Mapping[str, object]) -> Iterator[str]:
    conditions: list[_Condition] = []  # outermost first
    for full_line in text.splitlines():
        line = full_line.strip()
        if not line.startswith(_KEPT):
            line = re.sub(r"\s*//.*", "", line)
        is_read = all(condition.is_read for condition in conditions)
        directive, _, test = line.partition(" ")
        if directive in ("#if", "#ifdef", "#ifndef"):
            # In a branch that is not read the macros may be missing.
            holds = is_read and _holds(directive, test, defines)
            conditions.append(_Condition(holds, is_done=not is_read))
        elif directive in ("#elif", "#else"):
            condition = conditions[-1]
            if condition.is_read:
                condition.is_done = True
            condition.is_read = not condition.is_done and (
                directive == "#else" or _holds("#if", test, defines)
            )
        elif directive == "#endif":
            conditions.pop()
        elif line and is_read:
            yield line
    if conditions:
        raise ValueError("a kernel's condition is not closed")


def _holds(
    directive: str,
    condition: str,
    defines: Mapping[str, object],
) -> bool:
    if directive == "#ifdef":
        return condition in defines
    if directive == "#ifndef":
        return condition not in defines
    comparison = re.fullmatch(r"(RV_\w+) (==|>=) (\d+)", condition)
    if comparison is None:
        raise ValueError(
            "a kernel's condition must be a macro, == or >=, and a number, "
            f"not {condition!r}"
        )
    macro, operator, number = comparison.groups()
    value = int(str(defines[macro]))
    limit = int(number)
    if operator == "==":
        return value == limit
    return value >= limit
