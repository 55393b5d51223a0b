"""What an empty chat shows."""

from __future__ import annotations

from textual.content import Content

from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState

_TRIES = ("explain @README.md", "draft a polite refusal", "/chats to find an old one")


def welcome_content(session: ChatSession) -> Content:
    """The name, what is there, and what can be tried."""
    lines = [Content.styled("rvllm", "bold $primary"), Content("")]
    if session.connection is ConnectionState.READY and session.model:
        name = clean_line(session.model, 60)
        lines.append(Content.assemble(("● ", "$success"), f"{name} answers here"))
    else:
        text = clean_line(session.connection_text or "looking for a server", 120)
        lines.append(Content.assemble(("○ ", "$warning"), text))
        lines.append(Content("  What you send now waits for it."))
    if session.is_temporary:
        lines.append(Content("  This chat is not kept."))
    if session.chat.system:
        lines.append(
            Content(f"  System prompt: {clean_line(session.chat.system, 120)}")
        )
    lines.append(Content(""))
    lines.append(Content.styled(f"Try: {'   ·   '.join(_TRIES)}", "$muted"))
    keys = (
        "Ctrl+L chooses a model, Ctrl+S opens earlier chats, F1 shows everything else"
    )
    lines.append(Content.styled(keys, "$muted"))
    return Content("\n").join(lines)
