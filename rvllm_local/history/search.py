"""The queries of the full-text search over messages and titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rvllm_local.history.rows import storable
from rvllm_local.history.types import Hit

EXCERPT = 160  # characters of a hit's excerpt
Read = Callable[[str, Sequence[Any]], list[Any]]


def search(read: Read, text: str, limit: int) -> list[Hit]:
    """Messages and titles that hold every word of `text`, best first.

    The last word may be cut short. `read` runs one query.
    """
    words = storable(text).replace("\0", " ").split()
    if not words:
        return []
    rows = read(_BY_WORD, (_match(words), limit))
    patterns = [_pattern(word) for word in words]
    rows += read(_by_title(len(words)), (*patterns, limit))
    if not rows:  # text without spaces between words, and parts of words
        rows = read(_by_part(len(words)), (*patterns, limit))
    return [Hit(*row) for row in rows[:limit]]


_BY_WORD = (
    "SELECT m.chat_id, m.id, c.title, snippet(message_fts, 0, '', '', ' … ', 24)"
    " FROM message_fts f"
    " JOIN message m ON m.seq = f.rowid JOIN chat c ON c.id = m.chat_id"
    " WHERE message_fts MATCH ? ORDER BY rank LIMIT ?"
)


def _match(words: Sequence[str]) -> str:
    quoted = ('"' + word.replace('"', '""') + '"' for word in words)
    return " ".join(quoted) + "*"


def _pattern(word: str) -> str:
    for sign in ("\\", "%", "_"):
        word = word.replace(sign, "\\" + sign)
    return f"%{word}%"


def _all_like(column: str, count: int) -> str:
    return " AND ".join([f"{column} LIKE ? ESCAPE '\\'"] * count)


def _by_title(count: int) -> str:
    return (
        f"SELECT id, NULL, title, '' FROM chat WHERE {_all_like('title', count)}"
        " ORDER BY updated DESC LIMIT ?"
    )


def _by_part(count: int) -> str:
    return (
        f"SELECT m.chat_id, m.id, c.title, substr(m.text, 1, {EXCERPT})"
        " FROM message m JOIN chat c ON c.id = m.chat_id"
        f" WHERE {_all_like('m.text', count)} ORDER BY m.seq DESC LIMIT ?"
    )
