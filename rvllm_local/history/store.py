"""The chat history: a tree of messages a chat in one SQLite file, with full-text search.

What a method has returned is on disk and survives `kill -9`. Knows nothing of any interface, engine or network.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history.schema import SCHEMA_VERSION, migrate, version_of
from rvllm_local.history.types import Chat, ChatMessage, Hit, MessageState, ToolCall

_MESSAGE = "id, chat_id, parent_id, role, text, reasoning, tool_calls, state, model, figures, created, seq"
_CHAT = "id, title, created, updated, head_id, system, params, model"
_SNIPPET = 160  # characters of a search hit's excerpt


class ChatHistory:
    """One open history file. Methods may be called from any thread; each write is one durable transaction.

    A file that a newer version wrote is opened read-only, and `read_only` says why; `path=None` keeps everything in
    memory. Raises `HistoryError` for a file that cannot be used, and from any write that could not be made durable.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.read_only: str | None = None
        self._lock = threading.RLock()
        try:
            self._db = self._open(path)
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(
                f"the history {path} cannot be opened: {error}; move it away or name another"
            ) from error

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is None:
            db = _connect(":memory:")
            migrate(db)
            return db
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            found = _peek(path)
            if found > SCHEMA_VERSION:
                self.read_only = f"{path} was written by a newer version (format {found}, known is {SCHEMA_VERSION})"
            elif not os.access(path, os.W_OK):
                self.read_only = f"{path} may not be written by you"
            if self.read_only:
                return _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        else:
            os.close(
                os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            )  # the -wal and -shm files inherit the mode
        db = _connect(str(path))
        db.execute("PRAGMA journal_mode=WAL")
        for pragma in ("synchronous=FULL", "fullfsync=1", "checkpoint_fullfsync=1"):
            db.execute(f"PRAGMA {pragma}")
        migrate(db)
        return db

    # Chats

    def add_chat(self, chat: Chat) -> None:
        """Keep a new chat."""
        with self._write() as db:
            values = (
                chat.id,
                chat.title,
                chat.created,
                chat.updated,
                chat.head_id,
                chat.system,
                _json(chat.params),
            )
            db.execute(
                f"INSERT INTO chat ({_CHAT}) VALUES (?,?,?,?,?,?,?,?)",
                (*values, chat.model),
            )

    def chats(self, limit: int = 500) -> list[Chat]:
        """The chats, last used first."""
        rows = self._read(
            f"SELECT {_CHAT} FROM chat ORDER BY updated DESC, rowid DESC LIMIT ?",
            (limit,),
        )
        return [_chat(row) for row in rows]

    def chat(self, chat_id: str) -> Chat | None:
        """One chat, or None."""
        rows = self._read(f"SELECT {_CHAT} FROM chat WHERE id = ?", (chat_id,))
        return _chat(rows[0]) if rows else None

    def set_chat(self, chat_id: str, **values: Any) -> None:
        """Change a chat's title, system, params, model or head_id."""
        unknown = set(values) - {"title", "system", "params", "model", "head_id"}
        assert not unknown, f"unknown columns {unknown}"
        values = {
            name: _json(value) if name == "params" else value
            for name, value in values.items()
        }
        columns = ", ".join(f"{name} = ?" for name in values)
        with self._write() as db:
            db.execute(
                f"UPDATE chat SET {columns} WHERE id = ?", (*values.values(), chat_id)
            )

    def delete_chat(self, chat_id: str) -> None:
        """Forget a chat and its messages."""
        with self._write() as db:
            db.execute("DELETE FROM chat WHERE id = ?", (chat_id,))

    # Messages

    def add_message(self, message: ChatMessage) -> None:
        """Keep a new message and make it the head of its chat: the place where the chat goes on."""
        with self._write() as db:
            db.execute(
                f"INSERT INTO message ({_MESSAGE}) VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL)",
                (
                    *(
                        message.id,
                        message.chat_id,
                        message.parent_id,
                        message.role,
                        _safe(message.text),
                    ),
                    *(
                        _safe(message.reasoning),
                        _tools(message.tool_calls),
                        message.state,
                        message.model,
                    ),
                    *(_json(message.figures), message.created),
                ),
            )
            db.execute(
                "UPDATE chat SET head_id = ?, updated = ? WHERE id = ?",
                (message.id, time.time(), message.chat_id),
            )

    def update_message(self, message: ChatMessage) -> None:
        """Write a reply's text so far, or its end."""
        with self._write() as db:
            db.execute(
                "UPDATE message SET text=?, reasoning=?, tool_calls=?, state=?, model=?, figures=? WHERE id=?",
                (
                    *(
                        _safe(message.text),
                        _safe(message.reasoning),
                        _tools(message.tool_calls),
                        message.state,
                    ),
                    *(message.model, _json(message.figures), message.id),
                ),
            )

    def delete_message(self, message_id: str) -> None:
        """Forget a message and all that follow it; the chat goes on at its parent."""
        with self._write() as db:
            row = db.execute(
                "SELECT chat_id, parent_id FROM message WHERE id = ?", (message_id,)
            ).fetchone()
            if row is None:
                return
            doomed = [message_id, *(child for child in _descendants(db, message_id))]
            db.executemany(
                "DELETE FROM message WHERE id = ?", [(one,) for one in doomed]
            )
            sibling = db.execute(
                "SELECT id FROM message WHERE chat_id = ? AND parent_id IS ? ORDER BY seq DESC LIMIT 1",
                row,
            ).fetchone()
            head = _leaf(db, sibling[0]) if sibling else row[1]
            db.execute(
                f"UPDATE chat SET head_id = ? WHERE id = ? AND head_id IN ({_marks(doomed)})",
                (head, row[0], *doomed),
            )

    def message(self, message_id: str) -> ChatMessage | None:
        """One message, or None."""
        rows = self._read(f"SELECT {_MESSAGE} FROM message WHERE id = ?", (message_id,))
        return _message(rows[0]) if rows else None

    def path_to(self, message_id: str | None) -> list[ChatMessage]:
        """The messages from a chat's root to this one, in order."""
        query = (
            "WITH RECURSIVE up(id, parent_id, depth) AS ("
            " SELECT id, parent_id, 0 FROM message WHERE id = ?"
            " UNION ALL SELECT m.id, m.parent_id, depth + 1 FROM message m JOIN up ON m.id = up.parent_id)"
            f" SELECT {', '.join('m.' + name.strip() for name in _MESSAGE.split(','))}"
            " FROM message m JOIN up ON m.id = up.id ORDER BY up.depth DESC"
        )
        return [_message(row) for row in self._read(query, (message_id,))]

    def thread(self, chat_id: str) -> list[ChatMessage]:
        """The messages of a chat from its root to its head."""
        chat = self.chat(chat_id)
        return self.path_to(chat.head_id) if chat else []

    def all_messages(self, chat_id: str) -> list[ChatMessage]:
        """Every message of a chat, all branches, in the order of writing."""
        return [
            _message(row)
            for row in self._read(
                f"SELECT {_MESSAGE} FROM message WHERE chat_id = ? ORDER BY seq",
                (chat_id,),
            )
        ]

    def siblings(self, chat_id: str) -> dict[str, tuple[int, int]]:
        """For each message of a chat: its place among the messages with the same parent (from 0), and their count."""
        groups: dict[str | None, list[str]] = {}
        for message_id, parent_id in self._read(
            "SELECT id, parent_id FROM message WHERE chat_id = ? ORDER BY seq",
            (chat_id,),
        ):
            groups.setdefault(parent_id, []).append(message_id)
        return {
            one: (place, len(group))
            for group in groups.values()
            for place, one in enumerate(group)
        }

    def switch_sibling(self, message_id: str, step: int) -> str:
        """Go to the next (or previous) message with the same parent, and on to its newest leaf; returns the sibling."""
        with self._write() as db:
            row = db.execute(
                "SELECT chat_id, parent_id FROM message WHERE id = ?", (message_id,)
            ).fetchone()
            if row is None:
                raise HistoryError("this message is no longer in the history")
            query = "SELECT id FROM message WHERE chat_id = ? AND parent_id IS ? ORDER BY seq"
            group = [one for (one,) in db.execute(query, row)]
            chosen = str(group[(group.index(message_id) + step) % len(group)])
            db.execute(
                "UPDATE chat SET head_id = ? WHERE id = ?", (_leaf(db, chosen), row[0])
            )
        return chosen

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Messages and titles that hold every word of `text` (the last may be cut short), best first."""
        words = [word for word in _safe(text).replace("\0", " ").split() if word]
        if not words:
            return []
        match = " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"
        query = (
            "SELECT m.chat_id, m.id, c.title, snippet(message_fts, 0, '', '', ' … ', 24) FROM message_fts f"
            " JOIN message m ON m.seq = f.rowid JOIN chat c ON c.id = m.chat_id"
            " WHERE message_fts MATCH ? ORDER BY rank LIMIT ?"
        )
        rows = self._read(query, (match, limit))
        like = " AND ".join("{0} LIKE ? ESCAPE '\\'" for _ in words)
        patterns = [
            "%"
            + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            + "%"
            for word in words
        ]
        rows += self._read(
            f"SELECT id, NULL, title, '' FROM chat WHERE {like.format('title')} ORDER BY updated DESC LIMIT ?",
            (*patterns, limit),
        )
        if not rows:  # text without spaces between words, and parts of words
            rows = self._read(
                f"SELECT m.chat_id, m.id, c.title, substr(m.text, 1, {_SNIPPET}) FROM message m"
                f" JOIN chat c ON c.id = m.chat_id WHERE {like.format('m.text')} ORDER BY m.seq DESC LIMIT ?",
                (*patterns, limit),
            )
        return [Hit(*row) for row in rows[:limit]]

    # Settings that the interface makes, such as the theme and presets

    def setting(self, key: str, default: Any = None) -> Any:
        """A stored setting, as it was given to `set_setting`."""
        rows = self._read("SELECT value FROM setting WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def set_setting(self, key: str, value: Any) -> None:
        """Keep a setting: anything JSON can hold."""
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO setting VALUES (?, ?)", (key, json.dumps(value))
            )

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._db.close()

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise HistoryError(f"the history cannot be read: {error}") from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        if self.read_only:
            raise HistoryError(f"the history is read-only: {self.read_only}")
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._rollback()
                raise HistoryError(
                    f"not saved: {error}; free some disk space or name another history"
                ) from error
            except BaseException:
                self._rollback()
                raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(
        name, uri=uri, isolation_level=None, check_same_thread=False, timeout=5.0
    )
    db.execute("PRAGMA foreign_keys=ON")
    return db


def _peek(path: Path) -> int:
    db = _connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return version_of(db)
    finally:
        db.close()


def _descendants(db: sqlite3.Connection, message_id: str) -> list[str]:
    query = (
        "WITH RECURSIVE down(id) AS (SELECT id FROM message WHERE parent_id = ?"
        " UNION ALL SELECT m.id FROM message m JOIN down ON m.parent_id = down.id) SELECT id FROM down"
    )
    return [one for (one,) in db.execute(query, (message_id,))]


def _leaf(db: sqlite3.Connection, message_id: str) -> str:
    """Down from a message, always to the newest child."""
    while True:
        query = "SELECT id FROM message WHERE parent_id = ? ORDER BY seq DESC LIMIT 1"
        row = db.execute(query, (message_id,)).fetchone()
        if row is None:
            return message_id
        message_id = str(row[0])


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _safe(text: str) -> str:
    """SQLite takes no lone surrogates; they become the replacement character."""
    return (
        text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), separators=(",", ":"))


def _tools(calls: Sequence[ToolCall]) -> str:
    return json.dumps([[call.name, call.arguments, call.id] for call in calls])


def _message(row: Sequence[Any]) -> ChatMessage:
    tools = tuple(ToolCall(*call) for call in json.loads(row[6]))
    id, chat_id, parent_id, role, text, reasoning = row[:6]
    return ChatMessage(
        id,
        chat_id,
        parent_id,
        role,
        text,
        reasoning,
        tools,
        MessageState(row[7]),
        row[8],
        json.loads(row[9]),
        row[10],
    )


def _chat(row: Sequence[Any]) -> Chat:
    id, title, created, updated, head_id, system = row[:6]
    return Chat(
        id, title, created, updated, head_id, system, json.loads(row[6]), row[7]
    )
