"""The history file's tables, and the ordered steps that bring an older file up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable


def _first(db: sqlite3.Connection) -> None:
    """Chats, their message trees, full-text search and settings."""
    for statement in (
        "CREATE TABLE chat (id TEXT PRIMARY KEY, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,"
        " head_id TEXT, system TEXT NOT NULL, params TEXT NOT NULL, model TEXT NOT NULL)",
        "CREATE TABLE message (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
        " chat_id TEXT NOT NULL REFERENCES chat(id) ON DELETE CASCADE, parent_id TEXT, role TEXT NOT NULL,"
        " text TEXT NOT NULL, reasoning TEXT NOT NULL, tool_calls TEXT NOT NULL, state TEXT NOT NULL,"
        " model TEXT NOT NULL, figures TEXT NOT NULL, created REAL NOT NULL)",
        "CREATE INDEX message_parent ON message(parent_id)",
        "CREATE INDEX message_chat ON message(chat_id, seq)",
        "CREATE INDEX chat_updated ON chat(updated)",
        "CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE VIRTUAL TABLE message_fts USING fts5(text)",
        "CREATE TRIGGER message_added AFTER INSERT ON message BEGIN"
        " INSERT INTO message_fts(rowid, text) VALUES (new.seq, new.text); END",
        "CREATE TRIGGER message_changed AFTER UPDATE OF text ON message BEGIN"
        " UPDATE message_fts SET text = new.text WHERE rowid = old.seq; END",
        "CREATE TRIGGER message_removed AFTER DELETE ON message BEGIN"
        " DELETE FROM message_fts WHERE rowid = old.seq; END",
    ):
        db.execute(statement)


# Step n brings a file from version n to n + 1. Steps are only ever added.
MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first,)
SCHEMA_VERSION = len(MIGRATIONS)


def version_of(db: sqlite3.Connection) -> int:
    """The format of an open file; 0 for an empty one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(
    db: sqlite3.Connection,
    steps: tuple[Callable[[sqlite3.Connection], None], ...] = MIGRATIONS,
) -> None:
    """Bring the file up to date in one transaction, so that a crash leaves the old format or the new one."""
    if version_of(db) >= len(steps):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for number in range(
            version_of(db), len(steps)
        ):  # read again: another process may have been first
            steps[number](db)
            db.execute(f"PRAGMA user_version = {number + 1}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
