"""Figures as text: numbers at a readable length, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rvllm_local.bench.metrics import Figure


def number(value: float, unit: str = "") -> str:
    """A value with three digits that matter.

    Seconds below one are milliseconds or microseconds, bytes are MB.
    """
    if math.isinf(value):
        return "failed"
    if unit == "s" and 0 < abs(value) < 1e-3:
        return f"{value * 1e6:,.3g} us"
    if unit == "s" and abs(value) < 1:
        return f"{value * 1e3:,.3g} ms"
    if unit == "s" and value >= 10:
        return f"{value:,.1f} s"
    if unit == "s":
        return f"{value:.2f} s"
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    is_whole = float(value).is_integer() or (unit != "" and abs(value) >= 100)
    digits = f"{value:,.0f}" if is_whole else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def show(figure: Figure | None, *, bounds: bool = False) -> str:
    """A figure, with its noise bounds if asked for."""
    if figure is None:
        return "-"
    text = number(figure.value, figure.unit)
    if bounds and figure.low != figure.high:
        low = number(figure.low, figure.unit)
        high = number(figure.high, figure.unit)
        text += f" ({low} to {high})"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = "|" + "---|" * len(head)
    lines = [_markdown_row(head), rule]
    for row in rows:
        lines.append(_markdown_row(row))
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    everything = [head, *rows]
    widths = []
    for column in zip(*everything, strict=True):
        widths.append(max(map(len, column)))
    lines = []
    for title, *cells in everything:
        padded = [title.ljust(widths[0])]
        for cell, width in zip(cells, widths[1:], strict=True):
            padded.append(cell.rjust(width))
        line = "  ".join(padded)
        lines.append(line.rstrip())
    return "\n".join(lines)
