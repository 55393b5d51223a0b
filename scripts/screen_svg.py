"""Draws what a terminal showed as SVG: one screen, or several as a short film.

python scripts/screen_svg.py NAME.svg SCREEN [SCREEN ...] [--seconds 1.5]

A SCREEN is what `tmux capture-pane -e -p -N` wrote: text with escape sequences for its
colours. The picture loads nothing; several screens follow each other by CSS alone.
"""

from __future__ import annotations

import argparse
from collections import Counter
from html import escape
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
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
    ground = _usual_ground(all_rows)
    columns = max(cell_len(row.plain) for rows in all_rows for row in rows)
    num_rows = max(len(rows) for rows in all_rows)
    width, height = columns * CELL_W + 2 * MARGIN, num_rows * CELL_H + 2 * MARGIN
    frames = []
    for number, rows in enumerate(all_rows):
        # Whoever draws no animations shows the last screen alone.
        hidden = "" if number == len(all_rows) - 1 else ' opacity="0"'
        frames.append(f'<g class="f{number}"{hidden}>{_frame(rows, ground)}</g>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}"'
        f' width="{width:.0f}" height="{height}" role="img">'
    )
    page = f'<rect width="100%" height="100%" rx="8" fill="{ground}"/>'
    style = f"<style>{_css(len(screens), seconds)}</style>"
    return "\n".join([head, style, page, *frames, "</svg>"]) + "\n"


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
        turning = f"turn {whole:.2f}s step-end infinite"
        for number in range(count):
            # Each has begun before, so that all turn from the first moment on.
            delay = -((count - number) % count) * seconds
            rules.append(f".f{number} {{ animation: {turning} {delay:.2f}s }}")
        still = "svg g { animation: none !important }"
        rules.append(f"@media (prefers-reduced-motion: reduce) {{ {still} }}")
    return "\n".join(rules)


def _rows(screen: str) -> list[Text]:
    """The rows, without the empty ones at the end.

    A style goes on in the next row until it is changed.
    """
    rows = list(AnsiDecoder().decode(screen.rstrip("\n")))
    while rows and not rows[-1].plain.strip():
        rows.pop()
    return rows


def _usual_ground(all_rows: list[list[Text]]) -> str:
    """The colour that most cells stand on."""
    cells: Counter[str] = Counter()
    console = Console(width=400, color_system="truecolor")
    for rows in all_rows:
        for row in rows:
            for segment in row.render(console):
                _, ground = _colours(segment.style or Style())
                cells[ground or GROUND] += cell_len(segment.text)
    return cells.most_common(1)[0][0]


def _frame(rows: list[Text], ground: str) -> str:
    console = Console(width=400, color_system="truecolor")
    marks = []
    for number, row in enumerate(rows):
        column = 0
        for segment in row.render(console):
            width = cell_len(segment.text)
            marks += _marks(segment, column, number, ground)
            column += width
    return "".join(marks)


def _marks(
    segment: Segment,
    column: int,
    row: int,
    usual: str,
) -> list[str]:
    """The ground and the letters of a run of one style."""
    style = segment.style or Style()
    y = MARGIN + row * CELL_H
    ink, ground = _colours(style)
    marks = []
    if ground and ground != usual:
        x = MARGIN + column * CELL_W
        width = cell_len(segment.text) * CELL_W
        marks.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}"'
            f' height="{CELL_H}" fill="{ground}"/>'
        )
    letters = segment.text.strip(" ")
    if letters:
        column += len(segment.text) - len(segment.text.lstrip(" "))
        x = MARGIN + column * CELL_W
        fill = f' style="fill:{ink}"' if ink else ""
        # Not everybody who draws it keeps blanks that stand side by side.
        shown = escape(letters.replace(" ", "\u00a0"))
        marks.append(
            f'<text x="{x:.1f}" y="{y + 14}" xml:space="preserve"'
            f' textLength="{cell_len(letters) * CELL_W:.1f}"'
            f' class="{_classes(style)}"{fill}>{shown}</text>'
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
