"""Reads blocks from the disk on a thread of its own, since a disk may be slow."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import OrderedDict

from rvllm_local.memory.disk_cache import BlockStore

# Blocks that were read and that nobody took yet. Those of a sequence that has ended
# stay until others push them out.
_MOST_READ = 64

Payload = bytes | bytearray


class DiskReader:
    """Reads blocks in the background. One thread uses it.

    `request` a block, and `take` it once it `has` come.
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._keys: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._requested: set[bytes] = set()
        self._payloads: OrderedDict[bytes, Payload | None] = OrderedDict()
        self._thread: threading.Thread | None = None

    def request(self, key: bytes) -> None:
        """Have a block read, unless it is being read or has been."""
        with self._lock:
            if key in self._requested or key in self._payloads:
                return
            self._requested.add(key)
        if self._thread is None:
            self._thread = self._start()
        self._keys.put(key)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(
            target=self._run,
            name="rvllm-disk",
            daemon=True,
        )
        thread.start()
        weakref.finalize(self, self._keys.put, None)
        return thread

    def has(self, key: bytes) -> bool:
        """True if the block has been read.

        `take` gives it, or None if it was damaged.
        """
        with self._lock:
            return key in self._payloads

    def take(self, key: bytes) -> Payload | None:
        """Hand out a block that has been read; None if it was pushed out meanwhile."""
        with self._lock:
            return self._payloads.pop(key, None)

    def wait(self, timeout_s: float) -> None:
        """Wait until a block comes, if one is being read."""
        with self._lock:
            is_reading = bool(self._requested)
        if is_reading:
            self._arrived.wait(timeout_s)
        self._arrived.clear()

    def close(self) -> None:
        """End the thread, once it has read what it is reading."""
        if self._thread is not None:
            self._keys.put(None)
            self._thread.join(5.0)

    def _run(self) -> None:
        while True:
            key = self._keys.get()
            if key is None:
                return
            payload = self._store.get(key)
            with self._lock:
                self._requested.discard(key)
                self._payloads[key] = payload
                if len(self._payloads) > _MOST_READ:
                    self._payloads.popitem(last=False)
            self._arrived.set()
