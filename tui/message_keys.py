"""What the keys do with the message that is selected, in a line."""

from __future__ import annotations

from collections.abc import Mapping

from rich.cells import cell_len

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.keymap import shown_keys

_GAP = "   "


def message_keys(
    message: ChatMessage,
    num_versions: int,
    keymap: Mapping[str, str],
    width: int,
) -> str:
    """The keys that mean something for this message, as many as have room."""
    words = {
        "message.copy": "copy",
        "message.edit": "edit" if message.role == "user" else "",
        "message.regenerate": "again",
        "message.copy_code": "code" if "```" in message.text else "",
        "message.reasoning": "thoughts" if message.reasoning else "",
        "message.branch": "branch",
        "message.delete": "delete",
    }
    parts = []
    for command_id, word in words.items():
        if word:
            parts.append(f"{shown_keys(command_id, keymap)} {word}")
    if num_versions > 1:
        before = shown_keys("message.sibling_previous", keymap)
        after = shown_keys("message.sibling_next", keymap)
        parts.insert(1, f"{before} {after} versions")
    parts.append("Esc back")
    while len(parts) > 1 and cell_len(_GAP.join(parts)) > width:
        parts.pop(-2)  # the way out stays
    return _GAP.join(parts)
