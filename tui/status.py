"""The status line as text: what is known, short, and nothing that is not."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content

from rvllm_local.tui.payload import conversation_tokens, estimate_tokens
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState, EngineView

_BAR = " ▏▎▍▌▋▊▉█"
_SHORTLY = 2  # pieces
FILLING, FULL = 0.75, 0.9  # shares of the context at which the gauge warns


def short_count(count: int) -> str:
    """Tokens for people: 950, 12.4k, 131k."""
    if count < 1000:
        return str(count)
    if count >= 100_000:
        return f"{round(count / 1000)}k"
    return f"{count / 1000:.1f}k".replace(".0k", "k")


def short_bytes(size: int) -> str:
    """Bytes for people: 0.3 GB, 9.8 GB, 36 GB."""
    value = size / 1e9
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def bar(part: float, width: int) -> str:
    """A bar of `width` cells, filled to `part` (0 to 1) in eighths."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    filled = "█" * full
    if rest:
        filled += _BAR[rest]
    return filled.ljust(width, "░")


def others_text(num_writing: int, num_unseen: int) -> str:
    """What goes on in other chats, or nothing."""
    parts = []
    if num_writing:
        parts.append(f"● {num_writing} other writing")
    if num_unseen:
        parts.append(f"✓ {num_unseen} new")
    return "  ".join(parts)


def status_parts(
    session: ChatSession,
    draft: str = "",
    persona: str = "",
    others: str = "",
) -> list[tuple[str, str]]:
    """The parts of the status line and their styles, most important first."""
    is_ready = session.connection is ConnectionState.READY
    parts = _names(session, persona, others)
    if not is_ready:
        text = session.connection_text or session.connection.value
        pieces = _pieces(clean_line(text, 200), "$warning")
        if not session.messages:
            pieces = pieces[:_SHORTLY]  # an empty chat shows all of it above
        return [*parts, *pieces]
    stats = session.stats
    if session.is_temporary:
        parts.append(("not kept", ""))
    if gauge := context_gauge(session, draft):
        parts.append(gauge)
    temperature = session.chat.params.get("temperature")
    if temperature is not None:
        parts.append((f"T {temperature:g}", ""))
    if stats.cached_tokens is not None:
        parts.append((f"cached {short_count(stats.cached_tokens)}", ""))
    if stats.tokens_per_second is not None:
        parts.append((f"{stats.tokens_per_second:.0f} tok/s", ""))
    if stats.drafts:
        parts.append((stats.drafts, ""))
    if stats.ttft is not None:
        parts.append((f"ttft {stats.ttft:.2f}s", ""))
    if memory := memory_text(session.engine):
        parts.append((memory, ""))
    return parts


def _names(
    session: ChatSession,
    persona: str,
    others: str,
) -> list[tuple[str, str]]:
    """Who answers, and what goes on in other chats."""
    parts = []
    if session.model:
        parts.append((clean_line(session.model, 40), ""))
    elif session.connection is ConnectionState.READY:
        parts.append(("no model", ""))
    if persona:
        parts.append((clean_line(persona, 24), "bold"))
    if others:
        parts.append((others, "$accent"))
    return parts


def context_gauge(session: ChatSession, draft: str = "") -> tuple[str, str] | None:
    """Tokens of the context in use, the draft among them, and the gauge's colour."""
    stats = session.stats
    written = estimate_tokens(draft)
    used = (stats.prompt_tokens or 0) + (stats.output_tokens or 0) + written
    is_estimate = written > 0
    if stats.prompt_tokens is None and session.live is not None:
        # The server counts at the end of a reply.
        used += conversation_tokens(session.messages)
        is_estimate = True
    if not used:
        return None
    sign = "≈" if is_estimate else ""
    length = session.context_length
    if not length:
        return f"ctx {sign}{short_count(used)}", ""
    share = used / length
    text = f"ctx {sign}{short_count(used)}/{short_count(length)}"
    if share > 1:
        return f"{text} too long", "bold $error"
    if share >= FULL:
        return f"{text} /compact", "$error"
    return text, "$warning" if share >= FILLING else ""


def status_text(session: ChatSession, width: int) -> str:
    """The status line as plain text, at most `width` cells wide."""
    return status_content(session, width).plain


def status_content(
    session: ChatSession,
    width: int,
    draft: str = "",
    download: str = "",
    persona: str = "",
    others: str = "",
) -> Content:
    """The status line, at most `width` cells wide; its last parts go first.

    `persona` is the preset in use, `others` tells of other chats.
    """
    parts = status_parts(session, draft, persona, others)
    is_ready = session.connection is ConnectionState.READY
    num_names = 1 if session.model or is_ready else 0
    if download:
        hint = ("Esc pauses", "$muted")
        parts = [*parts[:num_names], *_pieces(download, "$accent"), hint]
    least = 1 if is_ready and not download else num_names + 1
    while len(parts) > least and _width(parts) > width:
        parts.pop()
    if download and num_names and _width(parts) > width:
        parts.pop(0)  # the model is known; how far it is, is not
    pieces = [Content.styled(text, style) for text, style in parts]
    line = Content("  ").join(pieces)
    return line if line.cell_length <= width else line.truncate(width, ellipsis=True)


def _pieces(text: str, style: str) -> list[tuple[str, str]]:
    """What is going on, in pieces of which the last ones can be left out."""
    return [(piece, style) for piece in text.split(" · ")]


def _width(parts: list[tuple[str, str]]) -> int:
    return sum(cell_len(text) + 2 for text, _ in parts) - 2


def queue_text(session: ChatSession) -> Content:
    """The prompts that wait, above the composer."""
    lines = []
    for number, waiting in enumerate(session.queue):
        text = f"⏎ next: {clean_line(waiting.typed, 100)}"
        is_last = number == len(session.queue) - 1
        lines.append(text + ("   ↑ takes it back" if is_last else ""))
    return Content.styled("\n".join(lines), "$muted")


def memory_text(view: EngineView | None) -> str:
    """What the engine has planned of the memory it may take, in GB.

    Empty where that is not known.
    """
    if view is None or not view.memory:
        return ""
    budget = view.memory.get("budget") or view.memory.get("limit")
    used = view.memory.get("total") or 0
    if not used:
        for name, size in view.memory.items():
            if name not in ("budget", "limit", "device", "reserve"):
                used += size
    if budget:
        return f"{short_bytes(used)}/{short_bytes(budget)} GB"
    return f"{short_bytes(used)} GB"
