"""KV blocks on disk: a content-addressed store that outlives the process.

Knows bytes and keys only. One file a block (`block_file.py`), written by one thread.
The store is content-addressed and holds a byte budget; the file that was not used for
longest goes first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.memory.block_file import (
    HEADER,
    KEY_BYTES,
    SUFFIX,
    TEMPORARY,
    read_block,
    remove_foreign,
    write_block,
)
from rvllm_local.memory.block_scan import HOME_CHARS, block_files
from rvllm_local.memory.cache_contents import name_home

FREE_RESERVE = 512 * 2**20  # bytes that are left free on the disk
_QUEUE_BYTES = 64 * 2**20  # waiting to be written
_RESCAN_WRITES = 256  # other processes write too: look again after this many writes

# What the writer's thread does next, and with which block.
_Job = tuple[Callable[[bytes], None], bytes]


@dataclass(frozen=True, slots=True)
class SpillStats:
    """Counters since the store was opened.

    `blocks` and `bytes` count what this model has on disk.
    """

    blocks: int
    bytes: int
    hits: int
    misses: int
    writes: int
    dropped: int  # not written, because the queue was full or writing is off
    evicted: int
    corrupt: int
    enabled: bool


class BlockStore:
    """Blocks of one `fingerprint` (model and KV format) below `folder`.

    The byte budget covers all fingerprints. `put` and `get` never raise for what the
    disk does. If the disk cannot be written, writing goes off with one call of `warn`,
    and everything else goes on. Use it from one thread; the store has a writer's thread
    of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: bytes,
        budget_bytes: int,
        warn: Callable[[str], None],
        name: str = "",
    ) -> None:
        """`name` is the model's, for people."""
        if len(fingerprint) != KEY_BYTES:
            raise ValueError(
                f"a fingerprint has {KEY_BYTES} bytes, not {len(fingerprint)}"
            )
        self._root = folder
        self._home = folder / fingerprint.hex()[:HOME_CHARS]
        self._fingerprint = fingerprint
        self._budget = budget_bytes
        self._warn = warn
        self._name = name
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}  # this fingerprint's blocks
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        # Every block file, oldest first. Only the writer's thread uses it.
        self._ages: OrderedDict[Path, int] = OrderedDict()
        self._counts = {
            "hits": 0,
            "misses": 0,
            "writes": 0,
            "dropped": 0,
            "evicted": 0,
            "corrupt": 0,
        }
        self._enabled = True
        self._names = itertools.count()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Condition(self._lock)
        self._open()
        self._writer = threading.Thread(
            target=self._write_all, name="rvllm-spill", daemon=True
        )
        self._writer.start()

    def contains(self, key: bytes) -> bool:
        """Answered from memory; the file may turn out to be gone or damaged."""
        return key in self._sizes or key in self._pending

    def put(
        self,
        key: bytes,
        payload: Sequence[bytes | bytearray | memoryview],
    ) -> bool:
        """Hand a block to the writer.

        False if it is there already, or cannot be taken now.
        """
        if self.contains(key):
            return False
        data = b"".join(payload)
        most_pending = max(_QUEUE_BYTES, len(data))
        with self._lock:
            is_full = self._pending_bytes + len(data) > most_pending
            if not self._enabled or is_full:
                self._counts["dropped"] += 1
                return False
            self._pending[key] = data
            self._pending_bytes += len(data)
        self._queue.put((self._write_pending, key))
        return True

    def retire(self, key: bytes) -> None:
        """Let a block be the first to go, since a later one stands for it."""
        self._queue.put((self._make_oldest, key))

    def remove(self, key: bytes) -> None:
        """Forget a block whose content turned out to be of no use."""
        with self._lock:
            self._counts["corrupt"] += 1
            self._sizes.pop(key, None)
        self._queue.put((self._unlink, key))

    def get(self, key: bytes) -> bytearray | None:
        """The block, verified; None if it is not there. A damaged file is removed."""
        with self._lock:
            waiting = self._pending.get(key)
        if waiting is not None:
            self._counts["hits"] += 1
            return bytearray(waiting)
        if key not in self._sizes:
            self._counts["misses"] += 1
            return None
        path = self._path(key)
        try:
            payload = read_block(path, self._fingerprint, key)
        except OSError:
            payload = None
        if payload is None:
            self._remove_damaged(path, key)
            return None
        self._counts["hits"] += 1
        with contextlib.suppress(OSError):
            os.utime(path)  # eviction goes by age since the last use
        return payload

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything handed over is on disk, or dropped.

        False if that took longer.
        """
        with self._lock:
            return self._idle.wait_for(lambda: not self._pending, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, and stop the writer. Safe to call twice."""
        self._queue.put(None)
        self._writer.join(timeout_s)

    def stats(self) -> SpillStats:
        with self._lock:
            sizes = list(self._sizes.values())
            return SpillStats(
                len(sizes), sum(sizes), **self._counts, enabled=self._enabled
            )

    # What follows touches the disk.

    def _open(self) -> None:
        try:
            for folder in (self._root, self._home):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.is_symlink():
                    raise OSError(f"{folder} is a symbolic link")
                if folder.stat().st_mode & 0o077:
                    folder.chmod(0o700)
            if self._name:
                name_home(self._home, self._name)
            self._scan()
            self._make_room(0)
        except OSError as error:
            self._switch_off(error)

    def _scan(self) -> None:
        """Index the block files; remove what cannot be one, and dead temporaries."""
        ages: OrderedDict[Path, int] = OrderedDict()
        sizes: dict[bytes, int] = {}
        for file in block_files(self._root):
            ages[file.path] = file.size
            if file.home == self._home:
                sizes[bytes.fromhex(file.path.stem)] = file.size - HEADER.size
        self._ages = ages
        with self._lock:
            self._sizes = sizes

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._home / name[:2] / f"{name}{SUFFIX}"

    def _remove_damaged(self, path: Path, key: bytes) -> None:
        count = "corrupt"
        try:
            path.lstat()
        except OSError:
            count = "misses"  # evicted by another process: nothing is wrong
        with contextlib.suppress(OSError):
            remove_foreign(path)
        with self._lock:
            self._sizes.pop(key, None)
            self._counts[count] += 1

    def _write_all(self) -> None:
        """The writer's thread."""
        while (job := self._queue.get()) is not None:
            work, key = job
            work(key)

    def _write_pending(self, key: bytes) -> None:
        payload = self._pending[key]
        written = False
        if self._enabled:
            try:
                written = self._write(key, payload)
            except OSError as error:
                self._switch_off(error)
        with self._lock:
            del self._pending[key]
            self._pending_bytes -= len(payload)
            if written:
                self._sizes[key] = len(payload)
                self._counts["writes"] += 1
            else:
                self._counts["dropped"] += 1
            if not self._pending:
                self._idle.notify_all()

    def _make_oldest(self, key: bytes) -> None:
        path = self._path(key)
        if path in self._ages:
            self._ages.move_to_end(path, last=False)
            with contextlib.suppress(OSError):
                os.utime(path, (0, 0))

    def _unlink(self, key: bytes) -> None:
        path = self._path(key)
        self._ages.pop(path, None)
        with contextlib.suppress(OSError):
            remove_foreign(path)

    def _write(self, key: bytes, payload: bytes) -> bool:
        """Write one block.

        False if it is larger than the whole budget, or something that cannot be removed
        has its name. Raises OSError if the disk is no good.
        """
        size = HEADER.size + len(payload)
        if size > self._budget:
            return False
        if self._counts["writes"] % _RESCAN_WRITES == _RESCAN_WRITES - 1:
            self._scan()
        self._make_room(size)
        path = self._path(key)
        self._make_folders(path)
        if shutil.disk_usage(self._root).free < size + FREE_RESERVE:
            raise OSError(f"less than {FREE_RESERVE // 2**20} MB are free on the disk")
        temporary = path.with_name(f"{os.getpid()}-{next(self._names)}{TEMPORARY}")
        try:
            write_block(path, temporary, self._fingerprint, key, payload)
        except (IsADirectoryError, FileNotFoundError):
            return False  # somebody is at work in the folder
        self._ages.pop(path, None)
        self._ages[path] = size
        return True

    def _make_folders(self, path: Path) -> None:
        """Make the folders above a block, also after somebody has removed them.

        Whatever is foreign there goes.
        """
        for folder in (self._root, self._home, path.parent):
            if folder == path.parent and (folder.is_symlink() or folder.is_file()):
                folder.unlink()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()

    def _make_room(self, size: int) -> None:
        """Evict the blocks that were not used for longest until `size` more bytes fit the budget."""
        total = sum(self._ages.values())
        while self._ages and total + size > self._budget:
            path, length = next(iter(self._ages.items()))
            del self._ages[path]
            fresh = self._used_since(path, length)
            if fresh:
                continue
            total -= length
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            with self._lock:
                self._counts["evicted"] += 1
                if path.parent.parent == self._home:
                    self._sizes.pop(bytes.fromhex(path.stem), None)

    def _used_since(self, path: Path, length: int) -> bool:
        """Move a file that was read after it was indexed to the young end.

        Not if it is the only one. True if it was moved.
        """
        if not self._ages:
            return False
        oldest = next(iter(self._ages))
        try:
            if path.lstat().st_mtime <= oldest.lstat().st_mtime:
                return False
        except OSError:
            return False
        self._ages[path] = length
        return True

    def _switch_off(self, error: OSError) -> None:
        with self._lock:
            was_on = self._enabled
            self._enabled = False
        if was_on:
            self._warn(
                f"the disk cache in {self._root} is off from now on: {error}; "
                "the engine goes on without writing it. "
                "Free some space or mend the folder, then restart"
            )
