"""Screens as text: what each cell shows and in which style, in a form that reads well in a diff."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "screens"


def screen_rows(app: Any) -> list[list[tuple[str, str]]]:
    """The rows of the screen, each a list of (text, style)."""
    rows = []
    for strip in app.screen._compositor.render_strips():
        rows.append(
            [
                (segment.text, str(segment.style or ""))
                for segment in strip
                if segment.text
            ]
        )
    return rows


def screen_text(app: Any) -> str:
    """The characters of the screen alone."""
    return "\n".join(
        "".join(text for text, _ in row).rstrip() for row in screen_rows(app)
    )


def snapshot(app: Any) -> str:
    """The screen, then for each row its runs of one style by letters, then the styles."""
    styles: dict[str, str] = {}
    runs = []
    for row in screen_rows(app):
        line = ""
        for text, style in row:
            letter = styles.setdefault(style, _letter(len(styles)))
            width = sum(_width(one) for one in text)
            line += f"{letter}{width}"
        runs.append(line)
    legend = [f"{letter}: {style}" for style, letter in styles.items()]
    return "\n".join([screen_text(app), "-" * 8, *runs, "-" * 8, *legend]) + "\n"


def _letter(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[number] if number < len(letters) else f"<{number}>"


def _width(character: str) -> int:
    from rich.cells import cell_len

    return cell_len(character)


def kept_screen(name: str) -> str:
    """The screen that is kept under this name; nothing for one that is new."""
    path = FOLDER / f"{name}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def check_snapshot(app: Any, name: str, tmp_path: Path) -> None:
    """Compare with the screen that is kept; RVLLM_UPDATE_SCREENS=1 keeps the new ones."""
    shown, path = snapshot(app), FOLDER / f"{name}.txt"
    if os.environ.get("RVLLM_UPDATE_SCREENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    kept = kept_screen(name)
    if shown != kept:
        picture = tmp_path / f"{name}.svg"
        picture.write_text(app.export_screenshot(), encoding="utf-8")
        (tmp_path / path.name).write_text(shown, encoding="utf-8")
    assert shown.splitlines() == kept.splitlines(), (
        f"the screen differs from {path}; RVLLM_UPDATE_SCREENS=1 keeps it"
    )
