"""The chat's themes: their names, and for each of ours its colours.

Naming one must stay cheap, for the command line does: Textual is loaded for the colours
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.theme import Theme

# The names that are offered, and Textual's name of each.
CHOICES = {
    "dark": "dark",
    "light": "light",
    "high-contrast": "high-contrast",
    "terminal": "ansi-dark",
    "terminal-light": "ansi-light",
}
DEFAULT_THEME = "dark"
_WITHOUT_COLOURS = {"terminal": "dark", "terminal-light": "light"}
# `muted` is for what is beside the answer: weaker than the text, readable all the same.
_COLOURS = {
    "dark": {
        "primary": "#7aa2c8",
        "secondary": "#8f8fb8",
        "accent": "#c8a86b",
        "foreground": "#d6d6d2",
        "background": "#16181c",
        "surface": "#1d2025",
        "panel": "#23272e",
        "success": "#8fb573",
        "warning": "#d2a45c",
        "error": "#d2726b",
        "muted": "#8b9099",
        "track": "#2c313a",
    },
    "light": {
        "primary": "#2f5d8a",
        "secondary": "#5d5a8a",
        "accent": "#8a5a12",
        "foreground": "#23262b",
        "background": "#fbfaf7",
        "surface": "#f1efe9",
        "panel": "#e7e4dc",
        "success": "#41702a",
        "warning": "#8a5a12",
        "error": "#a8322a",
        "muted": "#6a6e75",
        "track": "#d5d1c6",
    },
    "high-contrast": {
        "primary": "#00d7ff",
        "secondary": "#ffffff",
        "accent": "#ffff00",
        "foreground": "#ffffff",
        "background": "#000000",
        "surface": "#000000",
        "panel": "#1a1a1a",
        "success": "#00ff5f",
        "warning": "#ffff00",
        "error": "#ff5f5f",
        "muted": "#d0d0d0",
        "track": "#5f5f5f",
    },
}


def make_themes() -> list[Theme]:
    """The themes, with their colours as Textual takes them."""
    from textual.theme import Theme

    themes = []
    for name, colours in _COLOURS.items():
        variables = {
            "muted": colours["muted"],
            "text-muted": colours["muted"],
            "scrollbar": colours["track"],
            "scrollbar-background": colours["background"],
        }
        theme = Theme(
            name=name,
            primary=colours["primary"],
            secondary=colours["secondary"],
            accent=colours["accent"],
            foreground=colours["foreground"],
            background=colours["background"],
            surface=colours["surface"],
            panel=colours["panel"],
            success=colours["success"],
            warning=colours["warning"],
            error=colours["error"],
            dark=name != "light",
            variables=variables,
        )
        themes.append(theme)
    return themes


def textual_theme(choice: str, has_no_colours: bool) -> str:
    """Textual's name of a theme that was chosen.

    Where no colours are wanted Textual makes greys of them. Of the terminal's own, which
    it does not know, it makes black alone: one of ours stands in.
    """
    if has_no_colours:
        choice = _WITHOUT_COLOURS.get(choice, choice)
    return CHOICES.get(choice, DEFAULT_THEME)


def fitting_theme(ground: str | None, has_sixteen_colours: bool) -> str:
    """The theme for a terminal whose ground is light or dark, or is not known.

    Of sixteen colours the terminal's own are used: the nearest to ours leave out lines
    and grounds.
    """
    if has_sixteen_colours:
        return "terminal-light" if ground == "light" else "terminal"
    return ground or DEFAULT_THEME


# Textual's own themes do not name it; the sixteen colours have one for it.
TERMINAL_VARIABLES = {"muted": "ansi_bright_black"}
