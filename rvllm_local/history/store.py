"""The chat history: a tree of messages a chat in one SQLite file, with full-text search.

What a method has returned is on disk and survives `kill -9`. Knows nothing of any
interface, engine or network.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvllm_local.errors import HistoryError
from rvllm_local.history.rows import (
    CHAT_COLUMNS,
    MESSAGE_COLUMNS,
    chat_row,
    encode_object,
    message_row,
    read_chat,
    read_message,
    reply_row,
)
from rvllm_local.history.schema import SCHEMA_VERSION, migrate, version_of
from rvllm_local.history.search import search
from rvllm_local.history.types import Chat, ChatMessage, Deleted, Hit

_TICK_S = 0.001  # keeps the order of two writes
_GONE = "not saved: what this answers was deleted by another chat."


class ChatHistory:
    """One open history file.

    Methods may be called from any thread; each write is one durable transaction. A file
    that a newer version wrote is opened read-only, and `read_only` says why;
    `path=None` keeps everything in memory. Raises `HistoryError` for a file that cannot
    be used, and from any write that could not be made durable.
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
            version = _peek(path)
            if version > SCHEMA_VERSION:
                self.read_only = f"{path} was written by a newer version (format {version}, known is {SCHEMA_VERSION})"
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
            _insert_chat(db, chat)

    def chats(self, limit: int = 500) -> list[Chat]:
        """The chats, last used first."""
        query = (
            f"SELECT {CHAT_COLUMNS} FROM chat ORDER BY updated DESC, rowid DESC LIMIT ?"
        )
        return [read_chat(row) for row in self._read(query, (limit,))]

    def chat(self, chat_id: str) -> Chat | None:
        """One chat, or None."""
        query = f"SELECT {CHAT_COLUMNS} FROM chat WHERE id = ?"
        rows = self._read(query, (chat_id,))
        return read_chat(rows[0]) if rows else None

    def set_chat(self, chat_id: str, **values: Any) -> None:
        """Change a chat's title, system, params, model or head_id."""
        unknown = set(values) - {"title", "system", "params", "model", "head_id"}
        assert not unknown, f"unknown columns {unknown}"
        if "params" in values:
            values["params"] = encode_object(values["params"])
        columns = ", ".join(f"{name} = ?" for name in values)
        query = f"UPDATE chat SET {columns} WHERE id = ?"
        with self._write() as db:
            db.execute(query, (*values.values(), chat_id))

    def delete_chat(self, chat_id: str) -> Deleted | None:
        """Forget a chat and its messages; returns what `restore` needs."""
        chat = self.chat(chat_id)
        if chat is None:
            return None
        messages = tuple(self.all_messages(chat_id))
        with self._write() as db:
            db.execute("DELETE FROM chat WHERE id = ?", (chat_id,))
        return Deleted(chat_id, chat.head_id, messages, chat)

    # Messages

    def add_message(self, message: ChatMessage) -> None:
        """Keep a new message and make it the head, where its chat goes on."""
        query = "UPDATE chat SET head_id = ?, updated = ? WHERE id = ?"
        with self._write() as db:
            _check_parent(db, message)
            _insert_message(db, message)
            db.execute(query, (message.id, _now(db), message.chat_id))

    def update_message(self, message: ChatMessage) -> None:
        """Write a reply's text so far, or its end."""
        query = (
            "UPDATE message SET text=?, reasoning=?, tool_calls=?, state=?,"
            " model=?, figures=? WHERE id=?"
        )
        with self._write() as db:
            db.execute(query, (*reply_row(message), message.id))

    def delete_message(self, message_id: str) -> Deleted | None:
        """Forget a message and all that follow it; the chat goes on at its parent.

        Returns what `restore` needs, or None where there is no such message.
        """
        message = self.message(message_id)
        chat = self.chat(message.chat_id) if message else None
        if message is None or chat is None:
            return None
        with self._write() as db:
            ids = {message_id, *_descendants(db, message_id)}
            everything = self.all_messages(chat.id)
            doomed = tuple(other for other in everything if other.id in ids)
            _delete_messages(db, doomed)
            if chat.head_id in ids:
                head_id = _new_head(db, chat.id, message.parent_id)
                query = "UPDATE chat SET head_id = ? WHERE id = ?"
                db.execute(query, (head_id, chat.id))
        return Deleted(chat.id, chat.head_id, doomed)

    def restore(self, deleted: Deleted) -> None:
        """Undo a deletion."""
        query = "UPDATE chat SET head_id = ? WHERE id = ?"
        with self._write() as db:
            if deleted.chat is not None:
                _insert_chat(db, deleted.chat)
            for message in deleted.messages:
                _insert_message(db, message)
            db.execute(query, (deleted.head_id, deleted.chat_id))

    def message(self, message_id: str) -> ChatMessage | None:
        """One message, or None."""
        rows = self._read(
            f"SELECT {MESSAGE_COLUMNS} FROM message WHERE id = ?", (message_id,)
        )
        return read_message(rows[0]) if rows else None

    def path_to(self, message_id: str | None) -> list[ChatMessage]:
        """The messages from a chat's root to this one, in order."""
        query = (
            "WITH RECURSIVE up(id, parent_id, depth) AS ("
            " SELECT id, parent_id, 0 FROM message WHERE id = ?"
            " UNION ALL SELECT m.id, m.parent_id, depth + 1 FROM message m JOIN up ON m.id = up.parent_id)"
            f" SELECT {', '.join('m.' + name.strip() for name in MESSAGE_COLUMNS.split(','))}"
            " FROM message m JOIN up ON m.id = up.id ORDER BY up.depth DESC"
        )
        return [read_message(row) for row in self._read(query, (message_id,))]

    def thread(self, chat_id: str) -> list[ChatMessage]:
        """The messages of a chat from its root to its head."""
        chat = self.chat(chat_id)
        return self.path_to(chat.head_id) if chat else []

    def all_messages(self, chat_id: str) -> list[ChatMessage]:
        """Every message of a chat, all branches, in the order of writing."""
        return [
            read_message(row)
            for row in self._read(
                f"SELECT {MESSAGE_COLUMNS} FROM message WHERE chat_id = ? ORDER BY seq",
                (chat_id,),
            )
        ]

    def prompts(self, limit: int) -> list[ChatMessage]:
        """What people asked in all chats, newest first."""
        query = (
            f"SELECT {MESSAGE_COLUMNS} FROM message WHERE role = 'user'"
            " ORDER BY seq DESC LIMIT ?"
        )
        return [read_message(row) for row in self._read(query, (limit,))]

    def siblings(self, chat_id: str) -> dict[str, tuple[int, int]]:
        """For each message of a chat: its place among the messages with the same parent (from 0), and their count."""
        groups: dict[str | None, list[str]] = {}
        for message_id, parent_id in self._read(
            "SELECT id, parent_id FROM message WHERE chat_id = ? ORDER BY seq",
            (chat_id,),
        ):
            groups.setdefault(parent_id, []).append(message_id)
        siblings = {}
        for group in groups.values():
            for index, message_id in enumerate(group):
                siblings[message_id] = (index, len(group))
        return siblings

    def switch_sibling(self, message_id: str, step: int) -> str:
        """Go to the next (or previous) message with the same parent, and on to its newest leaf; returns the sibling."""
        with self._write() as db:
            row = db.execute(
                "SELECT chat_id, parent_id FROM message WHERE id = ?", (message_id,)
            ).fetchone()
            if row is None:
                raise HistoryError("this message is no longer in the history")
            query = "SELECT id FROM message WHERE chat_id = ? AND parent_id IS ? ORDER BY seq"
            group = [str(member[0]) for member in db.execute(query, row)]
            sibling = group[(group.index(message_id) + step) % len(group)]
            db.execute(
                "UPDATE chat SET head_id = ? WHERE id = ?", (_leaf(db, sibling), row[0])
            )
        return sibling

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Messages and titles that hold every word of `text` (the last may be cut short), best first."""
        return search(self._read, text, limit)

    # Settings that the interface makes, such as the theme and presets

    def setting(self, key: str, default: Any = None) -> Any:
        """A stored setting, as it was given to `set_setting`."""
        rows = self._read("SELECT value FROM setting WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def set_setting(self, key: str, value: Any) -> None:
        """Keep a setting: anything JSON can hold."""
        self.change_setting(key, lambda _: value)

    def change_setting(self, key: str, change: Callable[[Any], Any]) -> None:
        """Put what `change` makes of a setting, or of None, in its place.

        It is one step: another program that has the file open loses nothing.
        """
        query = "SELECT value FROM setting WHERE key = ?"
        with self._write() as db:
            row = db.execute(query, (key,)).fetchone()
            kept = None if row is None else json.loads(row[0])
            values = (key, json.dumps(change(kept)))
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", values)

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
            except sqlite3.IntegrityError as error:
                self._rollback()
                raise HistoryError(_GONE) from error
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
    return [row[0] for row in db.execute(query, (message_id,))]


def _leaf(db: sqlite3.Connection, message_id: str) -> str:
    """Down from a message, always to the newest child."""
    while True:
        query = "SELECT id FROM message WHERE parent_id = ? ORDER BY seq DESC LIMIT 1"
        row = db.execute(query, (message_id,)).fetchone()
        if row is None:
            return message_id
        message_id = str(row[0])


def _now(db: sqlite3.Connection) -> float:
    """Seconds since 1970, but never before the newest chat: a clock can be set back."""
    newest = db.execute("SELECT max(updated) FROM chat").fetchone()[0]
    return time.time() if newest is None else max(time.time(), newest + _TICK_S)


def _insert_chat(db: sqlite3.Connection, chat: Chat) -> None:
    query = f"INSERT INTO chat ({CHAT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)"
    db.execute(query, chat_row(chat))


def _insert_message(db: sqlite3.Connection, message: ChatMessage) -> None:
    marks = "?,?,?,?,?,?,?,?,?,?,?,NULL"
    query = f"INSERT INTO message ({MESSAGE_COLUMNS}) VALUES ({marks})"
    db.execute(query, message_row(message))


def _check_parent(db: sqlite3.Connection, message: ChatMessage) -> None:
    """Raise `HistoryError` if the message before is gone."""
    if message.parent_id is None:
        return
    query = "SELECT 1 FROM message WHERE id = ?"
    if db.execute(query, (message.parent_id,)).fetchone() is None:
        raise HistoryError(_GONE)


def _delete_messages(db: sqlite3.Connection, messages: Sequence[ChatMessage]) -> None:
    rows = [(message.id,) for message in messages]
    db.executemany("DELETE FROM message WHERE id = ?", rows)


def _new_head(
    db: sqlite3.Connection, chat_id: str, parent_id: str | None
) -> str | None:
    """Where a chat goes on whose head is gone: a sibling's newest leaf, else above."""
    query = (
        "SELECT id FROM message WHERE chat_id = ? AND parent_id IS ?"
        " ORDER BY seq DESC LIMIT 1"
    )
    sibling = db.execute(query, (chat_id, parent_id)).fetchone()
    return _leaf(db, sibling[0]) if sibling else parent_id
