"""Writes the table of architectures in docs/models.md: each of mlx-lm's, built tiny and random, against mlx-lm itself.

`python -m scripts.architectures` writes, `--check` compares and exits with 1 if a verdict changed; names after it
choose some, and the other rows stay. `--ways` only finds out how those decode on a GPU whose row does not say it yet.
It runs from the root of a checkout; all take half an hour on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local.models.architecture import known_families
from tests.support.kernel_way import kernel_way
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
_HEAD = (
    "| architecture | verdict | keeps | called | on a GPU | note |\n"
    "|---|---|---|---|---|---|"
)


def row_of(verdict: Verdict, way: str) -> str:
    """One line of the table; `way` is how it decodes over the kernels."""
    detail = verdict.detail.replace("|", "/").replace("<", "(").replace(">", ")")
    cells = [
        verdict.arch,
        _MEANING[verdict.verdict],
        verdict.keeps,
        verdict.way,
        way,
        detail,
    ]
    return f"| {' | '.join(cells)} |"


def cells_of(row: str) -> list[str]:
    """A line's cells, without the bars."""
    return [cell.strip() for cell in row.split("|")[1:-1]]


def table(rows: dict[str, str]) -> str:
    """The table with its sums; `rows` are its lines by architecture."""
    cells = [cells_of(row) for _, row in sorted(rows.items())]
    served = [row for row in cells if row[1] == "served"]
    recurrent = sum("recurrent" in row[2] for row in served)
    compiled = sum(row[4].startswith("compiled") for row in served)
    kernels = sum(row[4].startswith("kernels") for row in served)
    refused = sum(row[1] == "refused" for row in cells)
    untested = sum(row[1] == "untested" for row in cells)
    unknown = sum(row[4] == "" for row in served)
    reference = len(served) - compiled - kernels - unknown
    sums = (
        f"{len(served)} of {len(cells)} architectures give mlx-lm's greedy tokens cold, "
        "warm and preempted;\n"
        f"{recurrent} of them have recurrent layers, and give them after a restart from "
        "disk as well. On a GPU\n"
        f"{compiled} decode in a compiled step over the kernels, {kernels} over the "
        f"kernels, {reference} over the reference; {unknown} were not tried yet.\n"
        f"{refused} are refused by name; of {untested} no tiny model could be made here."
    )
    return "\n".join([sums, "", _HEAD, *(row for _, row in sorted(rows.items()))])


def written_rows() -> dict[str, str]:
    """The page's rows by architecture."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| architecture")
    ]
    return {line.split("|")[1].strip(): line for line in rows}


def _write(rows: dict[str, str]) -> None:
    """Put these rows into the page."""
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(
        f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}",
        encoding="utf-8",
    )


def _judged(arch: str) -> str:
    """An architecture's row, found out now."""
    verdict = judge(arch)
    way = ""
    if verdict.verdict == "equal":
        way = kernel_way(arch)
    row = row_of(verdict, way)
    print(row, flush=True)
    return row


def _with_way(row: str) -> str:
    """A served architecture's row with its way, found out now if it has none."""
    cells = cells_of(row)
    if cells[1] != "served" or cells[4]:
        return row
    cells[4] = kernel_way(cells[0])
    print(f"{cells[0]}: {cells[4]}", flush=True)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Judge, and write or compare."""
    if "--ways" in sys.argv[1:]:
        _write({arch: _with_way(row) for arch, row in written_rows().items()})
        return 0
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    rows = {arch: _judged(arch) for arch in names or sorted(known_families())}
    written = written_rows()
    if "--check" in sys.argv[1:]:
        changed = [arch for arch, row in rows.items() if written.get(arch) != row]
        print(f"changed: {', '.join(changed)}" if changed else "the page is true")
        return 1 if changed else 0
    kept = {arch: row for arch, row in written.items() if arch in known_families()}
    _write({**kept, **rows})
    return 1 if any("| DIFFERENT |" in row for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
