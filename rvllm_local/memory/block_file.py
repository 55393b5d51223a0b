"""One KV block in one file: its header, checksum, and who may have written it.

A file is written under a temporary name and renamed, so that it is absent or complete
after kill -9. Nothing is synced: a file that a power cut left half-written fails its
checksum. Knows bytes and keys only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from io import RawIOBase
from pathlib import Path

KEY_BYTES = 32
SUFFIX, TEMPORARY = ".kv", ".tmp"
_MAGIC = b"RVKVBLK1"
# Magic, payload bytes, fingerprint, key, and sha256 of all that and the payload.
HEADER = struct.Struct("<8sQ32s32s32s")
_ONLY_MINE = os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ONLY_MINE


def read_block(
    path: Path,
    fingerprint: bytes,
    key: bytes,
) -> bytearray | None:
    """The file's payload; None if it is not this block's, whole and unchanged.

    Raises `OSError` if there is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | _ONLY_MINE)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        info = os.fstat(descriptor)
        if not is_trusted(info) or info.st_size <= HEADER.size:
            return None
        header = file.read(HEADER.size)
        if len(header) != HEADER.size:
            return None
        magic, length, stored_fingerprint, stored_key, digest = HEADER.unpack(header)
        names = (magic, stored_fingerprint, stored_key)
        if names != (_MAGIC, fingerprint, key):
            return None
        if length != info.st_size - HEADER.size:
            return None
        payload = bytearray(length)
        if _read_into(file, payload) != length:
            return None
        if _digest(fingerprint, key, payload) != digest:
            return None
        return payload


def write_block(
    path: Path,
    temporary: Path,
    fingerprint: bytes,
    key: bytes,
    payload: bytes,
) -> None:
    """Write the file under its temporary name, and rename it. Raises `OSError`."""
    digest = _digest(fingerprint, key, payload)
    header = HEADER.pack(_MAGIC, len(payload), fingerprint, key, digest)
    descriptor = os.open(temporary, _NEW_FILE, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            file.write(payload)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write a small file that only this user may read, whole or not at all."""
    temporary = path.with_name(f"{os.getpid()}{TEMPORARY}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, _NEW_FILE, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def is_trusted(info: os.stat_result) -> bool:
    """A regular file that only this user could have written.

    A checksum is no signature.
    """
    is_mine = info.st_uid == os.geteuid()
    return stat.S_ISREG(info.st_mode) and is_mine and not info.st_mode & 0o022


def remove_foreign(path: Path) -> None:
    """Remove a file, a link or an empty folder that stands in a block's place."""
    if stat.S_ISDIR(path.lstat().st_mode):
        with contextlib.suppress(OSError):
            path.rmdir()
    else:
        path.unlink()


def is_hex_name(path: Path, length: int) -> bool:
    """True for a name of so many hexadecimal digits, as the store gives them."""
    digits = "0123456789abcdef"
    return len(path.name) == length and all(letter in digits for letter in path.name)


def writer_lives(path: Path) -> bool:
    """True while the process runs whose id a temporary file's name carries."""
    pid = path.stem.split("-")[0]
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _digest(
    fingerprint: bytes,
    key: bytes,
    payload: bytes | bytearray,
) -> bytes:
    """sha256: processors have instructions for it, so it is quicker than blake2b."""
    header = HEADER.pack(_MAGIC, len(payload), fingerprint, key, b"")
    digest = hashlib.sha256(header)
    digest.update(payload)
    return digest.digest()


def _read_into(file: RawIOBase, payload: bytearray) -> int:
    """Read until the buffer is full or the file ends; the bytes that were read."""
    view, done = memoryview(payload), 0
    while done < len(payload):
        count = file.readinto(view[done:])
        if not count:
            break
        done += count
    return done
