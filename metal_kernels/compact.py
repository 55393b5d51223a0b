"""Makes a kernel's text short: MLX copies and compares it at every launch, which costs the host time.

Comments, indentation and the branches that the launch's macros exclude go. Every condition names such macros alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_KEPT = "// Metal injects:"  # MLX looks for these names in the body


def compact(text: str, defines: Mapping[str, object]) -> str:
    """`text` without what the compiler would skip."""
    return "\n".join(_lines(text, defines)) + "\n"


def _lines(text: str, defines: Mapping[str, object]) -> Iterator[str]:
    open_conditions: list[
        tuple[bool, bool]
    ] = []  # is this branch read, and was one before it?
    for written in text.splitlines():
        line = written.strip()
        line = line if line.startswith(_KEPT) else re.sub(r"\s*//.*", "", line)
        directive, _, condition = line.partition(" ")
        if directive in ("#if", "#ifdef", "#ifndef"):
            is_read = all(
                read for read, _ in open_conditions
            )  # else its macros may not even be there
            open_conditions.append(
                (is_read and _holds(directive, condition, defines), not is_read)
            )
        elif directive in ("#elif", "#else"):
            read, before = open_conditions.pop()
            before = before or read
            open_conditions.append(
                (
                    not before
                    and (directive == "#else" or _holds("#if", condition, defines)),
                    before,
                )
            )
        elif directive == "#endif":
            open_conditions.pop()
        elif line and all(read for read, _ in open_conditions):
            yield line
    if open_conditions:
        raise ValueError("a kernel's condition is not closed")


def _holds(
    directive: str,
    condition: str,
    defines: Mapping[str, object],
) -> bool:
    if directive != "#if":
        return (condition in defines) == (directive == "#ifdef")
    compared = re.fullmatch(r"(RV_\w+) (==|>=) (\d+)", condition)
    if compared is None:
        raise ValueError(
            f"a kernel's condition must be a macro, == or >=, and a number, not {condition!r}"
        )
    value, limit = int(str(defines[compared[1]])), int(compared[3])
    return value == limit if compared[2] == "==" else value >= limit
