"""The block store: what comes back is what was put, or nothing; whatever happened to the files in between."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rvllm_local.memory import block_file, disk_cache
from rvllm_local.memory.disk_cache import BlockStore

PRINT = bytes(32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def block(number: int, size: int = 3000) -> bytes:
    return random.Random(number).randbytes(size)


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def open_store(
    folder: Path, *, budget: int = 10**7, fingerprint: bytes = PRINT
) -> tuple[BlockStore, Warnings]:
    warnings = Warnings()
    return BlockStore(
        folder, fingerprint=fingerprint, budget_bytes=budget, warn=warnings
    ), warnings


def filled(folder: Path, count: int = 4) -> list[Path]:
    """A closed store with blocks 0 .. count - 1; their files."""
    store, _ = open_store(folder)
    for number in range(count):
        assert store.put(key(number), [block(number)])
    store.close()
    return sorted(folder.glob("*/*/*.kv"))


def test_a_new_process_finds_what_an_old_one_put(tmp_path: Path) -> None:
    filled(tmp_path)
    store, warnings = open_store(tmp_path)
    assert store.contains(key(2)) and not store.contains(key(9))
    assert store.get(key(2)) == block(2) and store.get(key(9)) is None
    stats = store.stats()
    assert (stats.blocks, stats.hits, stats.misses, stats.corrupt, warnings) == (
        4,
        1,
        1,
        0,
        [],
    )
    store.close()


def test_a_waiting_block_can_be_read(tmp_path: Path) -> None:
    store, _ = open_store(tmp_path)
    store.put(key(1), [block(1)[:1000], block(1)[1000:]])
    assert store.get(key(1)) == block(1)
    assert not store.put(key(1), [block(1)])
    assert store.flush(60)
    assert store.get(key(1)) == block(1)
    store.close()


def test_nobody_else_may_read_the_files(tmp_path: Path) -> None:
    (file, *_) = filled(tmp_path / "kv")
    assert file.stat().st_mode & 0o777 == 0o600
    assert all(
        folder.stat().st_mode & 0o777 == 0o700 for folder in list(file.parents)[:3]
    )


def test_every_damaged_byte_is_noticed_and_the_file_removed(tmp_path: Path) -> None:
    (file,) = filled(tmp_path, 1)
    whole = file.read_bytes()
    positions = [
        *range(block_file.HEADER.size),
        *random.Random(0).sample(range(block_file.HEADER.size, len(whole)), 20),
    ]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        store, _ = open_store(tmp_path)
        assert store.get(key(0)) is None, f"byte {position}"
        assert (
            not file.exists()
            and not store.contains(key(0))
            and store.stats().corrupt == 1
        )
        store.close()


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        lambda file: file.write_bytes(b"not a block at all" * 100),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), os.mkfifo(file)),
        lambda file: (file.unlink(), file.symlink_to("/etc")),
        lambda file: (
            file.parent.rename(file.parents[2] / "away"),
            file.parent.symlink_to(file.parents[2] / "away"),
        ),
        lambda file: (shutil.rmtree(file.parent), file.parent.write_text("no folder")),
        lambda file: shutil.rmtree(file.parents[2]),
        lambda file: file.chmod(0o622),
        lambda file: file.unlink(),
    ],
)
def test_foreign_files_are_never_served(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    (file,) = filled(tmp_path, 1)
    before, _ = open_store(tmp_path)  # indexed while it was good
    harm(file)
    after, _ = open_store(tmp_path)
    for store in (after, before):
        assert store.get(key(0)) is None
    after.put(
        key(0), [block(0)]
    )  # its place is free again, and nothing was switched off
    assert after.flush(60) and after.stats().enabled and after.get(key(0)) == block(0)
    for store in (before, after):
        store.close()
    assert Path("/etc/passwd").exists()


def test_a_folder_with_content_costs_the_block_in_its_place_and_nothing_else(
    tmp_path: Path,
) -> None:
    (file,) = filled(tmp_path, 1)
    file.unlink()
    (file / "theirs").mkdir(parents=True)
    store, warnings = open_store(tmp_path)
    store.put(key(0), [block(0)])
    store.put(key(1), [block(1)])
    assert store.flush(60) and store.stats().enabled and not warnings
    assert (
        store.get(key(0)) is None
        and store.get(key(1)) == block(1)
        and (file / "theirs").exists()
    )
    store.close()


def test_a_folder_that_is_not_the_store_s_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    theirs = [
        tmp_path / "other" / "ab" / "notes.txt",
        next(tmp_path.iterdir()) / "my notes" / "notes.txt",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("not to be lost")
    store, _ = open_store(tmp_path)
    assert store.get(key(0)) == block(0) and all(path.exists() for path in theirs)
    store.close()


def test_files_that_were_copied_by_hand_are_closed_to_others_and_served(
    tmp_path: Path,
) -> None:
    (file,) = filled(tmp_path, 1)
    file.chmod(0o644)
    store, _ = open_store(tmp_path)
    assert store.get(key(0)) == block(0) and file.stat().st_mode & 0o777 == 0o600
    store.close()


def test_a_clock_that_was_ahead_makes_no_block_young_for_ever(tmp_path: Path) -> None:
    ahead = filled(tmp_path)[0]
    os.utime(ahead, (2**33, 2**33))
    size = ahead.stat().st_size
    store, _ = open_store(tmp_path, budget=4 * size)
    time.sleep(0.05)  # files are dated to a few milliseconds
    for number in range(10, 18):
        store.put(key(number), [block(number)])
        assert store.flush(60)
    assert (
        not ahead.exists()
        and sum(path.stat().st_size for path in tmp_path.glob("*/*/*.kv")) <= 4 * size
    )
    store.close()


def test_another_model_s_block_under_this_name_is_refused(tmp_path: Path) -> None:
    (file,) = filled(tmp_path, 1)
    other, _ = open_store(tmp_path, fingerprint=bytes([1] * 32))
    other.put(key(0), [block(7)])
    other.close()
    stranger = next(path for path in tmp_path.glob("*/*/*.kv") if path != file)
    file.write_bytes(stranger.read_bytes())
    store, _ = open_store(tmp_path)
    assert store.get(key(0)) is None
    store.close()


def test_the_budget_holds_over_all_models_and_evicts_the_oldest(tmp_path: Path) -> None:
    for number, path in enumerate(filled(tmp_path)):
        os.utime(path, (1000 + number, 1000 + number))
    size = 3000 + block_file.HEADER.size
    store, _ = open_store(tmp_path, budget=4 * size, fingerprint=bytes([1] * 32))
    store.put(key(50), [block(50)])
    store.put(key(51), [block(51)])
    store.close()
    files = sorted(tmp_path.glob("*/*/*.kv"))
    assert len(files) == 4
    mine, _ = open_store(tmp_path)
    assert [mine.contains(key(number)) for number in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    mine.close()


def test_a_block_that_was_used_outlives_one_that_was_not(tmp_path: Path) -> None:
    for path in filled(tmp_path, 2):
        os.utime(path, (1000, 1000))
    size = 3000 + block_file.HEADER.size
    store, _ = open_store(tmp_path, budget=2 * size)
    assert store.get(key(0)) == block(0)
    store.put(key(5), [block(5)])
    assert store.flush(60)
    assert store.contains(key(0)) and not store.contains(key(1))
    store.close()


def test_a_block_larger_than_the_budget_is_dropped(tmp_path: Path) -> None:
    store, warnings = open_store(tmp_path, budget=1000)
    store.put(key(0), [block(0)])
    assert store.flush(60)
    assert store.stats().dropped == 1 and not store.contains(key(0)) and warnings == []
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_turns_writing_off_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    filled(tmp_path)
    store, warnings = open_store(tmp_path)

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(disk_cache.os, "open", fail)
        for number in range(10, 14):
            store.put(key(number), [block(number)])
        assert store.flush(60)
    assert (
        len(warnings) == 1
        and os.strerror(code) in warnings[0]
        and "\n" not in warnings[0]
    )
    assert not store.stats().enabled
    assert store.get(key(1)) == block(1), "what is there can still be read"
    assert not store.put(key(20), [block(20)])
    store.close()
    assert not list(tmp_path.glob("*/*/*.tmp"))


def test_a_nearly_full_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "FREE_RESERVE", 2**62)
    store, warnings = open_store(tmp_path)
    store.put(key(0), [block(0)])
    assert store.flush(60)
    assert len(warnings) == 1 and "free" in warnings[0]
    store.close()


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store, warnings = open_store(tmp_path / "file" / "kv")
    assert len(warnings) == 1
    assert not store.put(key(0), [block(0)]) and store.get(key(0)) is None
    store.close()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    size = 3000 + block_file.HEADER.size
    one, _ = open_store(tmp_path, budget=6 * size)
    two, _ = open_store(tmp_path, budget=6 * size)
    for number in range(40):
        (one, two)[number % 2].put(key(number), [block(number)])
        for store in (one, two):
            found = store.get(key(number // 2))
            assert found is None or found == block(number // 2)
    one.close()
    two.close()
    again, _ = open_store(tmp_path, budget=6 * size)
    assert again.stats().bytes <= 6 * size
    again.close()


WRITER = """
import sys, itertools, random
from pathlib import Path
from rvllm_local.memory.disk_cache import BlockStore
store = BlockStore(Path(sys.argv[1]), fingerprint=bytes(32), budget_bytes=10**8, warn=print)
for number in itertools.count(int(sys.argv[2])):
    store.put(number.to_bytes(32, "big"), [random.Random(number).randbytes(200_000)])
    if store.flush(60) and number == int(sys.argv[2]):
        print("ready", flush=True)
"""


def test_kill_nine_leaves_whole_blocks_only(tmp_path: Path) -> None:
    chance = random.Random(1)
    for start in range(0, 5000, 1000):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    store, _ = open_store(tmp_path, budget=10**8)
    assert store.stats().blocks > 0
    assert not list(tmp_path.glob("*/*/*.tmp"))
    for path in tmp_path.glob("*/*/*.kv"):
        number = int(path.stem, 16)
        assert store.get(key(number)) == block(number, 200_000)
    assert store.stats().corrupt == 0
    store.close()


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of puts, gets, reopenings and damage against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store, _ = open_store(Path(self.folder.name), budget=8 * 600)
        self.put: set[int] = set()

    @rule(number=st.integers(0, 15))
    def put_block(self, number: int) -> None:
        self.store.put(key(number), [block(number, 400)])
        self.put.add(number)

    @rule(number=st.integers(0, 15))
    def get_block(self, number: int) -> None:
        found = self.store.get(key(number))
        assert found is None or (number in self.put and found == block(number, 400))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store, _ = open_store(Path(self.folder.name), budget=8 * 600)

    @rule(position=st.integers(0, 450))
    def damage(self, position: int) -> None:
        self.store.flush(60)
        for path in list(Path(self.folder.name).glob("*/*/*.kv"))[:1]:
            data = bytearray(path.read_bytes())
            data[position % len(data)] ^= 1
            path.write_bytes(data)

    @invariant()
    def within_budget(self) -> None:
        assert self.store.flush(60)
        assert (
            sum(path.stat().st_size for path in Path(self.folder.name).glob("*/*/*.kv"))
            <= 8 * 600
        )

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
