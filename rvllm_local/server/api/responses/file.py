"""Kept responses in one SQLite file: what was written is there after a restart.

The file is its owner's alone. What is deleted is overwritten. The oldest responses go
when there are too many bytes of them, or when their time is over.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from rvllm_local.server.api.responses.kept import Kept, Row

VERSION = 1  # of the bodies; a change of their form counts it up
_WAIT_S = 10.0  # for another server that writes to the file
_TABLES = (
    "CREATE TABLE IF NOT EXISTS response (seq INTEGER PRIMARY KEY, id TEXT NOT NULL"
    " UNIQUE, created REAL NOT NULL, version INTEGER NOT NULL, size INTEGER NOT NULL,"
    " body TEXT NOT NULL)",
    # An item that is sent back belongs to several responses.
    "CREATE TABLE IF NOT EXISTS item (id TEXT NOT NULL, response_id TEXT NOT NULL"
    " REFERENCES response(id) ON DELETE CASCADE, PRIMARY KEY (id, response_id))",
    "CREATE INDEX IF NOT EXISTS item_response ON item(response_id)",
)
_PRAGMAS = (
    "foreign_keys=ON",
    "secure_delete=ON",
    "auto_vacuum=FULL",
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=1",
)


class OtherVersionError(Exception):
    """A response was kept by a server of another version."""


class ResponseFile:
    """One open file. Used by one thread at a time.

    Every method raises `sqlite3.Error` or `OSError` where the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The journals beside the file inherit its mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        self._db = sqlite3.connect(
            path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        for pragma in _PRAGMAS:
            self._db.execute(f"PRAGMA {pragma}")
        for statement in _TABLES:
            self._db.execute(statement)
        self._drop_old()

    def put(self, kept: Kept) -> None:
        """Write a response; it is on disk when this returns."""
        body = _encoded(kept)
        row = (kept.response_id, self._clock(), VERSION, len(body), body)
        items = [(item["id"], kept.response_id) for item in kept.items()]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO response (id, created, version, size, body)"
                " VALUES (?, ?, ?, ?, ?)",
                row,
            )
            self._db.executemany("INSERT OR REPLACE INTO item VALUES (?, ?)", items)
            self._drop_old()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def get(self, response_id: str) -> Kept | None:
        """The response of this id; None if there is none, or its time is over.

        Raises `OtherVersionError`.
        """
        row = self._db.execute(
            "SELECT version, body FROM response WHERE id = ? AND created > ?",
            (response_id, self._oldest()),
        ).fetchone()
        if row is None:
            return None
        version, body = row
        if version != VERSION:
            raise OtherVersionError
        return _decoded(body)

    def get_item(self, item_id: str) -> Row | None:
        """The item of this id, of any response. Raises `OtherVersionError`."""
        row = self._db.execute(
            "SELECT response_id FROM item WHERE id = ? ORDER BY rowid DESC", (item_id,)
        ).fetchone()
        kept = None if row is None else self.get(row[0])
        if kept is None:
            return None
        for item in kept.items():
            if item["id"] == item_id:
                return item
        return None

    def remove(self, response_id: str) -> bool:
        """Forget a response; False if there is none."""
        query = "DELETE FROM response WHERE id = ?"
        is_gone = self._db.execute(query, (response_id,)).rowcount > 0
        if is_gone:
            # Its text is not to stay in the journal either.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return is_gone

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _oldest(self) -> float:
        """When the oldest response that counts may have been made."""
        return self._clock() - self._max_age_s

    def _drop_old(self) -> None:
        """Forget what is too old, and the oldest of what is too much."""
        self._db.execute("DELETE FROM response WHERE created <= ?", (self._oldest(),))
        # How many bytes there are from each response to the latest.
        self._db.execute(
            "DELETE FROM response WHERE seq IN (SELECT seq FROM (SELECT seq,"
            " sum(size) OVER (ORDER BY seq DESC) AS total FROM response)"
            " WHERE total > ?)",
            (self._max_bytes,),
        )


def _encoded(kept: Kept) -> str:
    return json.dumps(
        {
            "response": kept.response,
            "input_items": kept.input_items,
            "messages": kept.messages,
            "size": kept.size,
        }
    )


def _decoded(body: str) -> Kept:
    """The response in a body. Raises `OtherVersionError` for what is none."""
    try:
        row = json.loads(body)
        return Kept(
            row["response"],
            tuple(row["input_items"]),
            tuple(row["messages"]),
            row["size"],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise OtherVersionError from error
