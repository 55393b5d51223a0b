"""The chat's themes: dark, light, high contrast, and the terminal's own colours."""

from __future__ import annotations

from textual.theme import Theme

THEMES = (
    Theme("dark", primary="#7aa2c8", secondary="#8f8fb8", accent="#c8a86b", foreground="#d6d6d2", background="#16181c",
          surface="#1d2025", panel="#23272e", success="#8fb573", warning="#d2a45c", error="#d2726b", dark=True),
    Theme("light", primary="#2f5d8a", secondary="#5d5a8a", accent="#8a5a12", foreground="#23262b", background="#fbfaf7",
          surface="#f1efe9", panel="#e7e4dc", success="#41702a", warning="#8a5a12", error="#a8322a", dark=False),
    Theme("high-contrast", primary="#00d7ff", secondary="#ffffff", accent="#ffff00", foreground="#ffffff",
          background="#000000", surface="#000000", panel="#1a1a1a", success="#00ff5f", warning="#ffff00",
          error="#ff5f5f", dark=True, text_alpha=1.0, variables={"text-muted": "#e0e0e0"}),
)  # fmt: skip
