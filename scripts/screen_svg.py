"""Draws what a terminal showed as SVG: one screen, or several as a short film.

python scripts/screen_svg.py NAME.svg SCREEN [SCREEN ...] [--seconds 1.5]

A SCREEN is what `tmux capture-pane -e -p` wrote: text with escape sequences for its
colours. The picture loads nothing; several screens follow each other by CSS alone.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

CELL_W, CELL_H = 8.4, 18  # pixels
MARGIN = 12
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
GROUND, INK = "#121212", "#e0e0e0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("screens", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each screen")
    arguments = parser.parse_args()
    screens = [path.read_text(encoding="utf-8") for path in arguments.screens]
    picture = film(screens, arguments.seconds)
    arguments.target.write_text(picture, encoding="utf-8")
    print(f"{arguments.target}: {len(picture) / 1000:.0f} kB")


def film(screens: list[str], seconds: float) -> str:
    """The screens one after the other, for ever; a single one stands still."""
    all_rows = [_rows(screen) for screen in screens]
    columns = max(cell_len(row.plain) for rows in all_rows for row in rows)
    num_rows = max(len(rows) for rows in all_rows)
    width, height = columns * CELL_W + 2 * MARGIN, num_rows * CELL_H + 2 * MARGIN
    frames = []
    for number, rows in enumerate(all_rows):
        frames.append(f'<g class="frame f{number}">{_frame(rows)}</g>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}"'
        f' width="{width:.0f}" height="{height}" role="img">'
    )
    ground = f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>'
    style = f"<style>{_css(len(screens), seconds)}</style>"
    return "\n".join([head, style, ground, *frames, "</svg>"]) + "\n"


def _css(count: int, seconds: float) -> str:
    rules = [
        f"text {{ font: 14px {FONT}; fill: {INK}; white-space: pre }}",
        ".b { font-weight: bold } .i { font-style: italic }",
        ".u { text-decoration: underline }",
    ]
    if count > 1:
        whole, share = count * seconds, 100 / count
        shown = f"0%, {share:.3f}% {{ opacity: 1 }}"
        hidden = f"{share + 0.001:.3f}%, 100% {{ opacity: 0 }}"
        rules.append(f"@keyframes turn {{ {shown} {hidden} }}")
        turning = f"animation: turn {whole:.2f}s step-end infinite"
        rules.append(f".frame {{ opacity: 0; {turning} }}")
        for number in range(count):
            rules.append(f".f{number} {{ animation-delay: {number * seconds:.2f}s }}")
    return "\n".join(rules)


def _rows(screen: str) -> list[Text]:
    """The rows, without the empty ones at the end."""
    rows = [Text.from_ansi(line) for line in screen.rstrip("\n").split("\n")]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    return rows


def _frame(rows: list[Text]) -> str:
    console = Console(width=400, color_system="truecolor")
    marks = []
    for number, row in enumerate(rows):
        column = 0
        for segment in row.render(console):
            width = cell_len(segment.text)
            marks += _marks(segment.text, segment.style, column, number, width)
            column += width
    return "".join(marks)


def _marks(
    text: str, style: Style | None, column: int, row: int, width: int
) -> list[str]:
    """The ground and the letters of a run of one style."""
    style = style or Style()
    x, y = MARGIN + column * CELL_W, MARGIN + row * CELL_H
    ink, ground = _colours(style)
    marks = []
    if ground:
        marks.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width * CELL_W:.1f}"'
            f' height="{CELL_H}" fill="{ground}"/>'
        )
    if text.strip():
        fill = f' fill="{ink}" style="fill:{ink}"' if ink else ""
        marks.append(
            f'<text x="{x:.1f}" y="{y + 14}" textLength="{width * CELL_W:.1f}"'
            f' class="{_classes(style)}"{fill}>{escape(text)}</text>'
        )
    return marks


def _colours(style: Style) -> tuple[str, str]:
    """The colours of the letters and of the ground; empty where they are usual."""
    ink = ground = ""
    if style.color is not None and not style.color.is_default:
        ink = style.color.get_truecolor(DIMMED_MONOKAI).hex
    if style.bgcolor is not None and not style.bgcolor.is_default:
        ground = style.bgcolor.get_truecolor(DIMMED_MONOKAI).hex
    if style.reverse:
        ink, ground = ground or GROUND, ink or INK
    return ink, ground


def _classes(style: Style) -> str:
    names = []
    for name, is_set in (
        ("b", style.bold),
        ("i", style.italic),
        ("u", style.underline),
    ):
        if is_set:
            names.append(name)
    return " ".join(names)


if __name__ == "__main__":
    main()
