"""A prompt on its way from the composer: long pastes as tokens, files behind their names.

Plain values; knows no widget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.tui.attach import expand, mentioned_files
from rvllm_local.tui.commands import as_prompt

TOKEN_LINES = 12  # a paste of more lines is shown as a token
TOKEN_CHARACTERS = 1200
DRAFT_CHARACTERS = 20_000  # nobody typed more: a longer draft is shown as a token
_TOKEN = re.compile(r"\[pasted [\d,]+ (?:lines|characters) #\d+\]")


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """`text` is what the model gets; `figures` what else is kept with the message.

    `figures["typed"]` is the prompt before its files were read, which is what is edited
    again; `figures["shown"]` is what the transcript shows in place of long text.
    """

    text: str
    figures: Mapping[str, Any]


def prepare(
    typed: str,
    pastes: Mapping[str, str],
    folder: Path,
) -> PreparedPrompt:
    """The prompt behind what stands in the composer.

    Raises `ParameterError` for what cannot be attached.
    """
    shown = as_prompt(typed)
    whole = put_pastes(shown, pastes)
    text = expand(whole, folder)
    figures = {}
    if text != whole:
        figures["typed"] = whole
    if text != shown:
        files = ", ".join(mentioned_files(whole, folder))
        figures["shown"] = f"{shown}\n({files})" if files else shown
    return PreparedPrompt(text, figures)


def paste_token(text: str, number: int) -> str | None:
    """A short sign for a long paste; None for one that is shown as it is."""
    num_lines = text.count("\n") + 1
    if num_lines > TOKEN_LINES:
        return f"[pasted {num_lines:,} lines #{number}]"
    if len(text) > TOKEN_CHARACTERS:
        return f"[pasted {len(text):,} characters #{number}]"
    return None


def draft_token(text: str, number: int) -> str | None:
    """A short sign for a draft too long to lay out; None for one that is shown."""
    if len(text) <= DRAFT_CHARACTERS:
        return None
    return f"[pasted {len(text):,} characters #{number}]"


def put_pastes(text: str, pastes: Mapping[str, str]) -> str:
    """The text with each token's paste in its place."""
    return _TOKEN.sub(lambda match: pastes.get(match[0], match[0]), text)
