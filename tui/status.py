"""The status line and the engine panel as text: what is known, short, and nothing that is not."""

from __future__ import annotations

from textual.content import Content

from rvllm_local.tui.payload import estimate_tokens
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState, EngineView

_BAR = " ▏▎▍▌▋▊▉█"
FILLING, FULL = 0.75, 0.9  # shares of the context at which the gauge warns


def short_count(count: int) -> str:
    """Tokens for people: 950, 12.4k, 131k."""
    if count < 1000:
        return str(count)
    return (
        f"{count / 1000:.1f}k".replace(".0k", "k")
        if count < 100_000
        else f"{round(count / 1000)}k"
    )


def short_bytes(size: int) -> str:
    """Bytes for people: 0.3 GB, 9.8 GB, 36 GB."""
    value = size / 1e9
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def bar(part: float, width: int) -> str:
    """A bar of `width` cells, filled to `part` (0 to 1) in eighths."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BAR[rest] if rest else "")).ljust(width, "░")


def status_parts(session: ChatSession, draft: str = "") -> list[tuple[str, str]]:
    """The parts of the status line and their styles, most important first."""
    parts = [(clean_line(session.model, 40) or "no model", "")]
    if session.connection is not ConnectionState.READY:
        text = session.connection_text or session.connection.value
        return [*parts, (clean_line(text, 200), "$warning")]
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
    if stats.ttft is not None:
        parts.append((f"ttft {stats.ttft:.2f}s", ""))
    if memory := memory_text(session.engine):
        parts.append((memory, ""))
    return parts


def context_gauge(session: ChatSession, draft: str = "") -> tuple[str, str] | None:
    """Tokens of the context in use, the draft among them, and the gauge's colour."""
    stats = session.stats
    written = estimate_tokens(draft)
    if stats.prompt_tokens is None and not written:
        return None
    used = (stats.prompt_tokens or 0) + (stats.output_tokens or 0) + written
    sign = "≈" if written else ""
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
    session: ChatSession, width: int, draft: str = "", download: str = ""
) -> Content:
    """The status line, at most `width` cells wide; its last parts go first."""
    parts = status_parts(session, draft)
    if download:
        parts = [parts[0], (download, "$accent")]
    is_ready = session.connection is ConnectionState.READY
    least = 1 if is_ready and not download else 2
    while len(parts) > least and _width(parts) > width:
        parts.pop()
    pieces = [Content.styled(text, style) for text, style in parts]
    line = Content("  ").join(pieces)
    return line if line.cell_length <= width else line.truncate(width, ellipsis=True)


def _width(parts: list[tuple[str, str]]) -> int:
    return sum(len(text) + 2 for text, _ in parts) - 2


def queue_text(session: ChatSession) -> Content:
    """The prompts that wait, above the composer."""
    lines = []
    for number, waiting in enumerate(session.queue):
        text = f"⏎ next: {clean_line(waiting.typed, 100)}"
        is_last = number == len(session.queue) - 1
        lines.append(text + ("   ↑ edits it" if is_last else ""))
    return Content.styled("\n".join(lines), "$muted")


def memory_text(view: EngineView | None) -> str:
    """What the engine has planned of the memory it may take, in GB; empty where that is not known."""
    if view is None or not view.memory:
        return ""
    budget = view.memory.get("budget") or view.memory.get("limit")
    used = view.memory.get("total") or sum(
        size
        for name, size in view.memory.items()
        if name not in ("budget", "limit", "device", "reserve", "total")
    )
    return (
        f"{short_bytes(used)}/{short_bytes(budget)} GB"
        if budget
        else f"{short_bytes(used)} GB"
    )


def engine_lines(view: EngineView | None, width: int) -> list[tuple[str, str]]:
    """The engine panel: text and a style's name (title, muted, or the letter of a block's state) a line."""
    if view is None:
        return [("This server does not show its engine.", "muted")]
    lines = [
        ("Blocks", "title"),
        *_block_lines(view, width),
        ("", ""),
        ("Requests", "title"),
    ]
    running = [one for one in view.requests if one.state not in ("waiting", "swapped")]
    queued = len(view.requests) - len(running)
    lines.append((f"{len(running)} running, {queued} waiting", "muted"))
    for one in view.requests[:6]:
        if one.state == "prefill" and one.prompt_tokens:
            part = one.computed_tokens / one.prompt_tokens
            lines.append(
                (
                    f"prefill {bar(part, 10)} {part:4.0%} of {short_count(one.prompt_tokens)}",
                    "",
                )
            )
        else:
            tail = (
                f" +{short_count(one.cached_tokens)} cached"
                if one.cached_tokens
                else ""
            )
            lines.append(
                (
                    f"{clean_line(one.state, 10)} {short_count(one.prompt_tokens)} in, {one.output_tokens} out{tail}",
                    "",
                )
            )
    lines += [("", ""), ("Counters", "title")]
    for name, value in list(view.stats.items())[:14]:
        shown = f"{value:.2f}" if isinstance(value, float) else clean_line(value, 16)
        lines.append(
            (
                f"{clean_line(name.replace('_', ' '), max(width - len(shown) - 1, 8)):<{max(width - len(shown), 8)}}{shown}",
                "muted",
            )
        )
    if view.memory:
        lines += [("", ""), ("Memory", "title")]
        for name, size in view.memory.items():
            shown = f"{size / 1e9:.2f} GB"
            lines.append(
                (
                    f"{clean_line(name.replace('_', ' '), width):<{max(width - len(shown), 8)}}{shown}",
                    "muted",
                )
            )
    return lines


def _block_lines(view: EngineView, width: int) -> list[tuple[str, str]]:
    """The block map, condensed to at most eight lines: each cell stands for the same number of blocks."""
    states = "".join(letter if letter in "fusc" else "f" for letter in view.block_map)
    cells = max(width, 8) * 8
    step = max(1, -(-len(states) // cells))
    # The busiest state of a cell's blocks is shown, so that a used block never hides among free ones.
    condensed = "".join(
        min(states[at : at + step], key="suc f".index)
        for at in range(0, len(states), step)
    )
    lines = [
        (condensed[at : at + width], "map")
        for at in range(0, len(condensed), max(width, 8))
    ]
    counts = view.blocks
    text = "  ".join(
        f"{name} {counts[name]}"
        for name in ("free", "used", "shared", "cached", "spilled")
        if name in counts
    )
    words = text.split("  ")
    row, rows = "", []
    for word in words:
        if row and len(row) + 2 + len(word) > width:
            rows.append(row)
            row = word
        else:
            row = f"{row}  {word}" if row else word
    note = [(f"one cell is {step} blocks", "muted")] if step > 1 else []
    return [*lines, *((row, "muted") for row in (*rows, row)), *note]
