"""The names of the themes that are offered, and Textual's name of each; apart, so that naming one loads nothing."""

from __future__ import annotations

CHOICES = {
    "dark": "dark",
    "light": "light",
    "high-contrast": "high-contrast",
    "terminal": "ansi-dark",
    "terminal-light": "ansi-light",
}
DEFAULT_THEME = "dark"
