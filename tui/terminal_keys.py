"""Keys that terminals send in a form that Textual does not know."""

from __future__ import annotations

from collections.abc import MutableMapping
from enum import Enum
from typing import Any, cast

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS


class _Keys(Enum):
    ALT_ENTER = "alt+enter"


# Escape and a carriage return, as xterm, tmux and most others send it.
_SEQUENCES = {"\x1b\r": (_Keys.ALT_ENTER,), "\x1b\n": (_Keys.ALT_ENTER,)}


def teach_keys() -> None:
    """Let Textual read Alt+Enter; without it, it is Enter. Safe to call twice."""
    table = cast(MutableMapping[str, Any], ANSI_SEQUENCES_KEYS)
    table.update(_SEQUENCES)
