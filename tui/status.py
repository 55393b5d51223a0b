"""The status line and the engine panel as text: what is known, short, and nothing that is not."""

from __future__ import annotations

from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import ChatSession, ConnectionState, EngineView

_BAR = " ▏▎▍▌▋▊▉█"


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


def status_parts(session: ChatSession) -> list[str]:
    """The parts of the status line, most important first; a narrow terminal drops the last."""
    parts = [clean_line(session.model, 40) or "no model"]
    if session.connection is not ConnectionState.READY:
        return [
            *parts,
            clean_line(session.connection_text or session.connection.value, 200),
        ]
    stats = session.stats
    used = (
        (stats.prompt_tokens or 0) + (stats.output_tokens or 0)
        if stats.prompt_tokens is not None
        else None
    )
    if used is not None:
        length = session.context_length
        parts.append(
            f"ctx {short_count(used)}/{short_count(length)}"
            if length
            else f"ctx {short_count(used)}"
        )
    if stats.cached_tokens is not None:
        parts.append(f"cached {short_count(stats.cached_tokens)}")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.0f} tok/s")
    if stats.ttft is not None:
        parts.append(f"ttft {stats.ttft:.2f}s")
    if memory := memory_text(session.engine):
        parts.append(memory)
    if session.is_temporary:
        parts.insert(1, "not kept")
    return parts


def status_text(session: ChatSession, width: int) -> str:
    """The status line, at most `width` cells wide."""
    parts = status_parts(session)
    least = 1 if session.connection is ConnectionState.READY else 2
    while len(parts) > least and len("  ".join(parts)) > width:
        parts.pop()
    line = "  ".join(parts)
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


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
