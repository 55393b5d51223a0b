"""Messages as one piece of selectable text: nothing becomes a widget.

Model text is never parsed as Textual markup. Text that cannot be rendered is shown as it
is.
"""

from __future__ import annotations

import time

from textual.content import Content

from rvllm_local.history.types import ChatMessage, MessageState, ToolCall
from rvllm_local.tui.blocks import BlockRenderer
from rvllm_local.tui.growing import Piece
from rvllm_local.tui.markdown import DEPTH, parse_markdown
from rvllm_local.tui.payload import is_summary, is_summary_prompt, shown_text
from rvllm_local.tui.reply import read_stats
from rvllm_local.tui.sanitise import clean, clean_line, shorten

_MUTED = "$muted"
_GOES_ON = "✂ the chat goes on from this summary; all that was said before stays above"


def render_markdown(text: str, width: int | None = None) -> Content:
    """Markdown, already cleaned, as styled text."""
    return render_piece(Piece(text), width)


def render_piece(piece: Piece, width: int | None = None) -> Content:
    """A part of a text that is still growing, as it will look in its place."""
    if not piece.text.strip():
        return Content("")
    try:
        tokens = parse_markdown(piece.text)
        if any(token.level >= DEPTH - 1 for token in tokens):
            return Content(piece.text)  # some of it is missing
        return BlockRenderer(piece, width).render(tokens)
    except Exception:  # a parser's bug or limit must not hide a reply
        return Content(piece.text)


def render_tool_call(call: ToolCall) -> Content:
    """A tool call on a line or two."""
    arguments = clean_line(call.arguments, 400)
    name = clean_line(call.name, 80)
    return Content.assemble(("⚙ ", _MUTED), (name, "bold"), (f"({arguments})", _MUTED))


def render_message(
    message: ChatMessage,
    version: tuple[int, int] = (0, 1),
    show_reasoning: bool = False,
    width: int | None = None,
) -> Content:
    """A settled message: reasoning, tool calls, text, and what is to be known of it.

    `version` is its place among the versions of it, and their count; `width` is in
    cells.
    """
    parts: list[Content] = []
    if message.reasoning:
        parts.append(_reasoning(message, show_reasoning))
    parts += [render_tool_call(call) for call in message.tool_calls]
    parts += _text(message, width)
    foot = _foot(message, version)
    if foot.plain:
        parts.append(foot)
    if is_summary(message):
        parts.append(Content.styled(_GOES_ON, "$text-accent"))
    return Content("\n\n").join(parts) if parts else Content.styled("(empty)", _MUTED)


def _text(message: ChatMessage, width: int | None) -> list[Content]:
    if is_summary_prompt(message):
        return [Content.styled("✂ a summary of what was said so far", _MUTED)]
    is_prompt = message.role == "user"
    shown, left_out = shorten(shown_text(message) if is_prompt else message.text)
    shown = clean(shown)
    parts = []
    if shown.strip() and (is_prompt or left_out):
        parts.append(Content(shown.rstrip()))
    elif shown.strip():
        parts.append(render_markdown(shown, width))
    if left_out:
        note = f"… {left_out:,} more characters; copy or export to have them"
        parts.append(Content.styled(note, _MUTED))
    return parts


def _reasoning(message: ChatMessage, show: bool) -> Content:
    seconds = message.figures.get("thought_s")
    label = "thoughts"
    if isinstance(seconds, int | float):
        label = f"thought for {seconds:.1f} s"
    head = Content.styled(f"{'▾' if show else '▸'} {label}", _MUTED)
    if not show:
        return head
    body = clean(shorten(message.reasoning)[0]).strip()
    return Content.assemble(head, "\n", (body, f"italic {_MUTED}"))


def _foot(message: ChatMessage, version: tuple[int, int]) -> Content:
    """How it ended, which version it is, and what it took."""
    parts: list[tuple[str, str]] = []
    if message.state is MessageState.FAILED:
        error = message.figures.get("error", "this reply broke off")
        text = f"✗ {clean_line(error)}  /regenerate tries again"
        parts.append((text, "$text-error"))
    elif message.state is MessageState.STOPPED:
        parts.append(("■ stopped", _MUTED))
    elif message.state is MessageState.PARTIAL:
        parts.append(("■ interrupted", _MUTED))
    if version[1] > 1:
        parts.append((f"‹ {version[0] + 1}/{version[1]} ›", "$text-accent"))
    measured = _measured(message)
    if measured:
        parts.append((measured, _MUTED))
    return Content("  ").join(Content.styled(text, style) for text, style in parts)


def _measured(message: ChatMessage) -> str:
    """Model, time, tokens and speed of a reply, as far as they are known."""
    stats = read_stats(message.figures)
    if message.role != "assistant" or not message.model or not stats.output_tokens:
        return ""
    parts = [
        clean_line(message.model, 40),
        shown_time(message.created),
        f"{stats.output_tokens:.0f} tok",
    ]
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.0f} tok/s")
    parts.append(stats.drafts)
    if stats.ttft is not None:
        parts.append(f"first word {stats.ttft:.1f} s")
    return " · ".join(part for part in parts if part)


def shown_time(seconds: float) -> str:
    """The time of day, of seconds since the epoch; nothing for what is no time."""
    try:
        return time.strftime("%H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def code_blocks(text: str) -> list[str]:
    """The code of the blocks of a message, in order; one that is half open counts."""
    tokens = parse_markdown(text)
    return [token.content for token in tokens if token.type in ("fence", "code_block")]
