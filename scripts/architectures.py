"""Writes the table of architectures in docs/models.md: each of mlx-lm's, built tiny and random, against mlx-lm itself.

`python -m scripts.architectures` writes, `--check` compares and exits with 1 if a verdict changed; names after it
choose some. It runs from the root of a checkout and takes about two minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local.models.architecture import known_families
from tests.support.matrix import Verdict, judge

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = (
    "<!-- architectures: made by scripts/architectures.py -->",
    "<!-- end of architectures -->",
)
_MEANING = {
    "equal": "served",
    "refused": "refused",
    "different": "DIFFERENT",
    "no model": "untested",
}


def row_of(found: Verdict) -> str:
    """One line of the table."""
    detail = found.detail.replace("|", "/").replace("<", "(").replace(">", ")")
    return f"| {found.arch} | {_MEANING[found.verdict]} | {found.keeps} | {found.way} | {detail} |"


def table(found: list[Verdict]) -> str:
    """The table with its sums."""
    equal = [one for one in found if one.verdict == "equal"]
    recurrent = sum("recurrent" in one.keeps for one in equal)
    sums = (
        f"{len(equal)} architectures give mlx-lm's greedy tokens cold, warm and preempted, {recurrent} of them with "
        f"recurrent layers; {sum(one.verdict == 'refused' for one in found)} are refused by name; of "
        f"{sum(one.verdict == 'no model' for one in found)} no tiny model could be made."
    )
    head = "| architecture | verdict | keeps | called | note |\n|---|---|---|---|---|"
    return "\n".join([sums, "", head, *(row_of(one) for one in found)])


def written_rows() -> dict[str, str]:
    """The page's rows by architecture."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| architecture")
    ]
    return {line.split("|")[1].strip(): line for line in rows}


def main() -> int:
    """Judge, and write or compare."""
    check = "--check" in sys.argv[1:]
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")] or sorted(
        known_families()
    )
    found = []
    for name in chosen:
        found.append(judge(name))
        print(row_of(found[-1]), flush=True)
    if check:
        rows = written_rows()
        changed = [one.arch for one in found if rows.get(one.arch) != row_of(one)]
        print(f"changed: {', '.join(changed)}" if changed else "the page is true")
        return 1 if changed else 0
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(
        f"{head}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8"
    )
    return 1 if any(one.verdict == "different" for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
