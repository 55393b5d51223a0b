"""Figures as text: numbers at a readable length, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rvllm_local.bench.metrics import Figure


def number(value: float, unit: str = "") -> str:
    """A value with three digits that matter; seconds below one as milliseconds or microseconds, bytes as MB."""
    if math.isinf(value):
        return "failed"
    if unit == "s" and 0 < abs(value) < 1e-3:
        return f"{value * 1e6:,.3g} us"
    if unit == "s":
        return (
            f"{value * 1e3:,.3g} ms"
            if abs(value) < 1
            else f"{value:,.1f} s"
            if value >= 10
            else f"{value:.2f} s"
        )
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    if unit == "":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
    digits = (
        f"{value:,.0f}"
        if abs(value) >= 100 or float(value).is_integer()
        else f"{value:.3g}"
    )
    return f"{digits} {unit}"


def show(figure: Figure | None, *, bounds: bool = False) -> str:
    """A figure, with its noise bounds if asked for."""
    if figure is None:
        return "-"
    text = number(figure.value, figure.unit)
    if bounds and figure.low != figure.high:
        text += f" ({number(figure.low, figure.unit)} to {number(figure.high, figure.unit)})"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    everything = [list(head), *map(list, rows)]
    widths = [
        max(len(row[column]) for row in everything) for column in range(len(head))
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in everything
    )
