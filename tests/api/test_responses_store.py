"""Kept responses: bounds, a file that outlives the server, and what happens to it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.commands.serve import settings_from
from rvllm_local.commands.verbs import build_parser
from rvllm_local.server.api.responses.file import ResponseFile
from rvllm_local.server.api.responses.kept import Kept
from rvllm_local.server.api.responses.store import ResponseStore
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.settings import ServerSettings
from tests.support.api import Running, served
from tests.support.wire import open_scripted

PATH = "/v1/responses"
DAY = 86_400.0


def kept(response_id: str, size: int = 10, text: str = "x") -> Kept:
    """A response with one item, which is `text`."""
    item = {"id": f"msg_{response_id}", "type": "message", "text": text}
    return Kept({"id": response_id, "output": [item]}, (), ({"role": "user"},), size)


def test_the_oldest_go_when_there_are_too_many_or_too_much() -> None:
    async def session() -> None:
        store = ResponseStore(max_kept=3, max_bytes=100)
        for number in range(4):
            await store.keep(kept(str(number)))
        with pytest.raises(Problem, match="no response"):
            await store.find("0")
        await store.keep(kept("large", 85))
        assert (await store.find("large")).size == 85
        assert await store.find("3")
        with pytest.raises(Problem):
            await store.find("2")
        await store.forget("large")
        await store.keep(kept("too large", 101))
        for gone in ("3", "too large"):
            with pytest.raises(Problem):
                await store.find(gone)

    asyncio.run(session())


class TestFile:
    """The file alone."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "data" / "responses.db"

    def opened(
        self, path: Path, most: int = 10**6, clock: Callable[[], float] = lambda: 0.0
    ) -> ResponseFile:
        return ResponseFile(path, most, DAY, clock)

    def test_what_was_written_is_there_later(self, path: Path) -> None:
        file = self.opened(path)
        file.put(kept("a"))
        file.close()
        file = self.opened(path)
        assert file.get("a") == kept("a")
        assert file.get("b") is None
        item = file.get_item("msg_a")
        assert item is not None and item["text"] == "x"
        assert file.get_item("msg_b") is None
        file.close()

    def test_only_its_owner_may_read_it(self, path: Path) -> None:
        file = self.opened(path)
        file.put(kept("a"))
        modes = {stat.S_IMODE(other.stat().st_mode) for other in path.parent.iterdir()}
        assert modes == {0o600}
        file.close()

    def test_what_is_deleted_is_gone_from_every_file(self, path: Path) -> None:
        file = self.opened(path)
        file.put(kept("a", text="a-secret-word"))
        file.put(kept("b"))
        assert file.remove("a") and not file.remove("a")
        for other in path.parent.iterdir():
            assert b"a-secret-word" not in other.read_bytes()
        assert file.get("a") is None and file.get_item("msg_a") is None
        assert file.get("b") == kept("b")
        file.close()

    def test_the_oldest_go_when_there_is_too_much(self, path: Path) -> None:
        file = self.opened(path, most=3500)
        for name in "abcd":
            file.put(kept(name, text=name * 900))
        assert [file.get(name) is not None for name in "abcd"] == [
            False,
            True,
            True,
            True,
        ]
        file.close()

    def test_a_response_ends_when_its_time_is_over(self, path: Path) -> None:
        now = [0.0]
        file = self.opened(path, clock=lambda: now[0])
        file.put(kept("a"))
        now[0] = DAY - 1
        assert file.get("a") is not None
        now[0] = DAY + 1
        assert file.get("a") is None
        file.put(kept("b"))
        file.close()
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT id FROM response").fetchall() == [("b",)]
        db.close()

    def test_an_item_may_belong_to_several(self, path: Path) -> None:
        file = self.opened(path)
        file.put(kept("a"))
        again = Kept({"id": "b", "output": []}, tuple(kept("a").items()), (), 1)
        file.put(again)
        file.remove("b")
        assert file.get_item("msg_a") is not None
        file.close()


@contextmanager
def keeping(tiny: Path, path: Path) -> Iterator[Running]:
    """A server that keeps responses in a file."""
    settings = ServerSettings(port=0, responses_file=path)
    with served({"tiny": tiny}, settings, opener=open_scripted) as running:
        yield running


def ask(running: Running, **fields: Any) -> dict[str, Any]:
    answer = running.post({"model": "tiny", "input": "say:hello", **fields}, PATH)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_conversation_goes_on_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    with keeping(tiny, path) as running:
        first = ask(running)
        unkept = ask(running, store=False)
        going_on = ask(running, previous_response_id=first["id"])
    with keeping(tiny, path) as running:
        assert running.client.get(f"{PATH}/{first['id']}").json() == first
        rows = running.client.get(f"{PATH}/{first['id']}/input_items").json()["data"]
        assert rows[0]["content"][0]["text"] == "say:hello"
        again = ask(running, previous_response_id=first["id"])
        assert again["usage"]["input_tokens"] == going_on["usage"]["input_tokens"]
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        ask(running, input=[reference, {"role": "user", "content": "say:hello"}])
        assert running.client.get(f"{PATH}/{unkept['id']}").status_code == 404
        assert running.client.delete(f"{PATH}/{first['id']}").status_code == 200
        assert running.client.delete(f"{PATH}/{first['id']}").status_code == 404
    with keeping(tiny, path) as running:
        assert running.client.get(f"{PATH}/{first['id']}").status_code == 404


def test_a_stream_is_kept_before_its_end_is_told(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    body = {"model": "tiny", "input": "say:hello", "stream": True}
    with (
        keeping(tiny, path) as running,
        running.client.stream("POST", PATH, json=body) as stream,
    ):
        for line in stream.iter_lines():
            if line == "event: response.completed":
                break
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT count(*) FROM response").fetchone() == (1,)
        db.close()


def test_a_response_of_another_version_says_so(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    with keeping(tiny, path) as running:
        first = ask(running)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE response SET version = 0")
    db.close()
    with keeping(tiny, path) as running:
        body = {"model": "tiny", "input": "x", "previous_response_id": first["id"]}
        answer = running.post(body, PATH)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert "another version of the server; send the whole" in error["message"]
        assert error["param"] == "previous_response_id"


def test_a_full_disk_ends_the_file_and_no_request(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "responses.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE filler (data BLOB)")
    db.close()
    opened: list[ResponseFile] = []

    def open_full() -> ResponseFile:
        file = ResponseFile(path, 10**9, DAY)
        file._db.execute("PRAGMA max_page_count = 1")  # as many as there are
        opened.append(file)
        return file

    async def session() -> None:
        store = ResponseStore(open_file=open_full)
        for name in "abc":
            await store.keep(kept(name, text="long " * 10_000))
        for name in "abc":
            assert (await store.find(name)).response_id == name
        with pytest.raises(Problem, match="no response"):
            await store.find("d")
        await store.close()

    asyncio.run(session())
    (line,) = caplog.messages
    assert line.startswith("responses are kept in memory alone from here on")
    assert "SQLITE_FULL" in line and "long" not in line
    assert len(opened) == 1


def test_a_file_that_cannot_be_opened_ends_no_request(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "responses.db"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    with keeping(tiny, path) as running:
        first = ask(running)
        assert running.client.get(f"{PATH}/{first['id']}").status_code == 200
    told = [line for line in caplog.messages if "in memory alone" in line]
    assert len(told) == 1
    assert path.read_bytes().startswith(b"this is no database")


@pytest.mark.parametrize(
    ("flags", "kept_s"), [([], 30 * DAY), (["--keep-responses", "2d"], 2 * DAY)]
)
def test_the_time_is_a_flag(flags: list[str], kept_s: float) -> None:
    settings = settings_from(build_parser().parse_args(["serve", *flags]), {})
    assert settings.responses_file is not None
    assert settings.responses_max_age_s == kept_s
    flags = ["--keep-responses", "0"]
    settings = settings_from(build_parser().parse_args(["serve", *flags]), {})
    assert settings.responses_file is None
