"""What an empty chat shows."""

from __future__ import annotations

from textual.content import Content

from rvllm_local.tui.first_start import BestModel
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState
from rvllm_local.tui.status import short_bytes

_TRIES = ("explain @README.md", "draft a polite refusal", "/chats")
_KEYS = "Ctrl+L chooses a model, Ctrl+S opens earlier chats, F1 shows everything else"


def welcome_content(
    session: ChatSession,
    best: BestModel | None = None,
    download: str = "",
    paused: str = "",
) -> Content:
    """The name, what is ready, what this machine could run, and what can be tried."""
    lines = [Content.styled("rvllm", "bold $primary"), Content("")]
    lines += _server_lines(session)
    if download:
        lines.append(Content.assemble(("  ", ""), (download, "$accent")))
        lines.append(Content("  It answers meanwhile. Esc pauses the download."))
    elif paused:
        lines.append(Content.assemble(("○ ", "$accent"), f"{paused} is here in part"))
        lines.append(Content("  F4 goes on with it, /cancel forgets what came."))
    elif best is not None and best.info.id != session.model:
        lines += _offer_lines(best)
    if session.is_temporary:
        lines.append(Content("  This chat is not kept."))
    if session.chat.system:
        system = clean_line(session.chat.system, 120)
        lines.append(Content(f"  System prompt: {system}"))
    lines.append(Content(""))
    lines.append(Content.styled(f"Try: {'  ·  '.join(_TRIES)}", "$muted"))
    lines.append(Content.styled(_KEYS, "$muted"))
    return Content("\n").join(lines)


def _server_lines(session: ChatSession) -> list[Content]:
    if session.connection is ConnectionState.READY and session.model:
        name = clean_line(session.model, 60)
        return [Content.assemble(("● ", "$success"), f"{name} answers here")]
    text = clean_line(session.connection_text or "looking for a server", 120)
    hint = "  What you send now waits for it."
    if text.startswith("fetching"):
        hint += " Esc pauses the download."
    return [Content.assemble(("○ ", "$warning"), text), Content(hint)]


def _offer_lines(best: BestModel) -> list[Content]:
    """The best model that fits, with what it takes and what is to be expected."""
    info = best.info
    facts = []
    if info.size:
        facts.append(f"{short_bytes(info.size)} GB")
    if best.speed is not None:
        facts.append(f"about {best.speed:.0f} tok/s here")
    if info.license:
        facts.append(clean_line(info.license, 30))
    doing = "starts" if info.installed else "fetches"
    name = clean_line(info.id, 40)
    return [
        Content.assemble(("○ ", "$accent"), f"{name} is the best that fits here"),
        Content.styled(f"  {'   '.join(facts)}", "$muted"),
        Content.styled(
            f"  F3 {doing} it; the present model answers meanwhile", "$muted"
        ),
    ]
