"""The engine panel as text: memory by kind, block map, requests, speed, counters.

Plain values in, lines out; each line is a text and the name of its style: title, muted,
map (letters of block states), memory (a bar) or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.state import EngineView, RunningRequest
from rvllm_local.tui.status import bar, short_count

Line = tuple[str, str]
MAP_ROWS = 8
REQUESTS_SHOWN = 6
COUNTERS_SHOWN = 40
LEAST_WIDTH = 8
_GRID = " ▁▂▃▄▅▆▇█"
_STATES = "fusc"  # of a block: free, used, shared, cached
_BUSIEST_FIRST = "sucf"
_COUNTS = ("free", "used", "shared", "cached", "spilled")
_WAITING = ("waiting", "swapped")
# What a memory report names beside the kinds of memory themselves.
_TOTALS = ("budget", "limit", "device", "reserve", "total")


@dataclass(frozen=True, slots=True)
class PanelExtras:
    """What the chat knows beside the engine's own view.

    `names` are the titles of chats by request; `speeds` in tokens a second and `waits`
    in seconds are those of the last replies. `is_more` shows the counters, too.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    speeds: Sequence[float] = ()
    waits: Sequence[float] = ()
    is_more: bool = False


def engine_lines(
    view: EngineView | None,
    width: int,
    extras: PanelExtras | None = None,
) -> list[Line]:
    """The panel's lines, of at most `width` cells each."""
    if view is None:
        return [("This server does not show its engine.", "muted")]
    extras = extras or PanelExtras()
    lines = memory_lines(view, width)
    lines += [("KV cache", "title"), *block_lines(view, width), ("", "")]
    lines += request_lines(view, width, extras.names)
    lines += _speed_lines(extras, width)
    if not extras.is_more:
        lines.append(("/more shows the counters", "muted"))
        return lines
    lines.append(("Counters", "title"))
    for name, value in list(view.stats.items())[:COUNTERS_SHOWN]:
        lines.append((_pair(name, _counter(value), width), "muted"))
    return lines


def memory_lines(view: EngineView, width: int) -> list[Line]:
    """Each kind of memory as a bar, in shares of the budget; the largest first."""
    kinds = []
    for name, size in view.memory.items():
        if name not in _TOTALS and size:
            kinds.append((size, name))
    if not kinds:
        return []
    kinds.sort(reverse=True)
    used = view.memory.get("total") or sum(size for size, _ in kinds)
    budget = view.memory.get("budget") or view.memory.get("limit") or used
    total = f"{used / 1e9:.2f} of {budget / 1e9:.1f} GB"
    lines = [("Memory", "title"), (_pair("planned", total, width), "muted")]
    for size, name in kinds:
        shown = f"{size / 1e9:.2f} GB"
        lines.append((_pair(name, shown, width), "muted"))
        lines.append((bar(size / budget, width), "memory"))
    lines.append(("", ""))
    return lines


def block_lines(view: EngineView, width: int) -> list[Line]:
    """The block map in a few lines: each cell stands for the same number of blocks."""
    width = max(width, LEAST_WIDTH)
    states = ""
    for letter in view.block_map:
        states += letter if letter in _STATES else "f"
    step = max(1, -(-len(states) // (width * MAP_ROWS)))
    # The busiest state of a cell's blocks is shown: no used block hides among free ones.
    cells = ""
    for start in range(0, len(states), step):
        cells += min(states[start : start + step], key=_BUSIEST_FIRST.index)
    lines = []
    for start in range(0, len(cells), width):
        lines.append((cells[start : start + width], "map"))
    for row in _wrapped_counts(view.blocks, width):
        lines.append((row, "muted"))
    if step > 1:
        lines.append((f"one cell is {step} blocks", "muted"))
    return lines


def request_lines(
    view: EngineView,
    width: int,
    names: Mapping[str, str],
) -> list[Line]:
    """The open requests, those of this chat by the title of their chat."""
    queued = 0
    for request in view.requests:
        if request.state in _WAITING:
            queued += 1
    running = len(view.requests) - queued
    lines = [("Requests", "title"), (f"{running} running, {queued} waiting", "muted")]
    for request in view.requests[:REQUESTS_SHOWN]:
        title = names.get(request.id)
        if title:
            lines.append((clean_line(f"● {title}", width), ""))
        lines.append((clean_line(_request_text(request), width), ""))
    lines.append(("", ""))
    return lines


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars, from zero to the largest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    line = ""
    for value in shown:
        line += _GRID[round(max(value, 0.0) / top * (len(_GRID) - 1))]
    return line


def _speed_lines(extras: PanelExtras, width: int) -> list[Line]:
    lines: list[Line] = []
    if extras.speeds:
        last = f"{extras.speeds[-1]:.0f} tok/s"
        lines.append((_pair("speed of the last replies", last, width), "muted"))
        lines.append((sparkline(extras.speeds, width), "memory"))
    if extras.waits:
        last = f"{extras.waits[-1]:.2f} s"
        lines.append((_pair("time to the first token", last, width), "muted"))
        lines.append((sparkline(extras.waits, width), "memory"))
    if lines:
        lines.append(("", ""))
    return lines


def _request_text(request: RunningRequest) -> str:
    prompt = short_count(request.prompt_tokens)
    if request.state == "prefill" and request.prompt_tokens:
        share = request.computed_tokens / request.prompt_tokens
        return f"prefill {bar(share, 10)} {share:4.0%} of {prompt}"
    text = f"{clean_line(request.state, 10)} {prompt} in, {request.output_tokens} out"
    if request.cached_tokens:
        text += f" +{short_count(request.cached_tokens)} cached"
    return text


def _counter(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return clean_line(value, 16)


def _pair(
    name: str,
    value: str,
    width: int,
) -> str:
    """A name at the left and its value at the right."""
    room = max(width - len(value), LEAST_WIDTH)
    label = clean_line(name.replace("_", " "), room - 1)
    return label.ljust(room) + value


def _wrapped_counts(counts: Mapping[str, int], width: int) -> list[str]:
    rows: list[str] = []
    for name in _COUNTS:
        if name not in counts:
            continue
        word = f"{name} {counts[name]}"
        if rows and len(rows[-1]) + 2 + len(word) <= width:
            rows[-1] += f"  {word}"
        else:
            rows.append(word)
    return rows
