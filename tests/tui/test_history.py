"""The chat history: what is acknowledged is kept, whatever happens; the tree, the search, and what comes in and out."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.tui_kill import acknowledged, check
from rvllm_local.errors import HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.export_chat import to_json, to_markdown
from rvllm_local.history.import_chats import import_json
from rvllm_local.history.schema import SCHEMA_VERSION, migrate
from rvllm_local.history.types import Chat, ChatMessage, MessageState, ToolCall

ROOT = Path(__file__).parents[2]


@pytest.fixture
def history(tmp_path: Path):
    opened = ChatHistory(tmp_path / "chats" / "history.db")
    yield opened
    opened.close()


def talk(
    history: ChatHistory, *texts: str, chat: str = "c", title: str = "Talk"
) -> list[str]:
    """A chat whose messages alternate; ids are the chat's id and a number."""
    history.add_chat(Chat(chat, title))
    for number, text in enumerate(texts):
        parent = f"{chat}{number - 1}" if number else None
        history.add_message(
            ChatMessage(
                f"{chat}{number}", chat, parent, ("user", "assistant")[number % 2], text
            )
        )
    return [f"{chat}{number}" for number in range(len(texts))]


def texts(messages) -> list[str]:
    return [message.text for message in messages]


def test_a_chat_comes_back_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    first = ChatHistory(path)
    talk(first, "hi", "hello")
    figures = {"tokens_per_second": 61.5}
    reply = ChatMessage(
        "r",
        "c",
        "c1",
        "assistant",
        "",
        "thinking",
        (ToolCall("f", "{}", "1"),),
        figures=figures,
        created=2.5,
    )
    first.add_message(reply)
    first.close()
    second = ChatHistory(path)
    assert second.message("r") == reply
    assert texts(second.thread("c")) == ["hi", "hello", ""]
    second.close()


def test_only_its_owner_can_read_it(history: ChatHistory) -> None:
    talk(history, "secret")
    for path in history.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_writes_are_durable(history: ChatHistory) -> None:
    read = lambda name: history._db.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    assert (read("journal_mode"), read("synchronous"), read("fullfsync")) == (
        "wal",
        2,
        1,
    )


def test_branches_and_siblings(history: ChatHistory) -> None:
    talk(history, "hi", "one")
    history.add_message(ChatMessage("again", "c", "c0", "assistant", "two"))
    history.add_message(ChatMessage("after", "c", "again", "user", "more"))
    assert texts(history.thread("c")) == ["hi", "two", "more"]
    assert history.siblings("c")["again"] == (1, 2)
    assert history.switch_sibling("again", -1) == "c1"
    assert texts(history.thread("c")) == ["hi", "one"]
    assert history.switch_sibling("c1", 1) == "again"
    assert texts(history.thread("c")) == [
        "hi",
        "two",
        "more",
    ]  # down to the newest leaf


def test_deleting_a_message_takes_what_follows_it(history: ChatHistory) -> None:
    talk(history, "hi", "one", "more", "end")
    history.delete_message("c2")
    assert texts(history.thread("c")) == ["hi", "one"]
    history.delete_message("c0")
    assert history.thread("c") == []
    history.delete_message("nothing")


def test_deleting_goes_to_the_sibling_that_is_left(history: ChatHistory) -> None:
    talk(history, "hi", "one")
    history.add_message(ChatMessage("again", "c", "c0", "assistant", "two"))
    history.delete_message("again")
    assert texts(history.thread("c")) == ["hi", "one"]


def test_rename_delete_and_order(history: ChatHistory) -> None:
    talk(history, "hi", chat="a")
    talk(history, "ho", chat="b")
    history.set_chat("a", title="Renamed", params={"temperature": 0.2})
    assert [chat.id for chat in history.chats()] == ["b", "a"]
    assert history.chat("a").title == "Renamed"
    assert history.chat("a").params == {"temperature": 0.2}
    history.delete_chat("a")
    assert history.chat("a") is None
    assert history.all_messages("a") == []
    assert history.search("hi") == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("whale", {"c0"}),
        ("Whal", {"c0"}),  # the last word may be cut short
        ("blue whale", {"c0"}),
        ("whale krill", set()),
        ('"whale', {"c0"}),
        ("AND OR NOT", set()),
        ("text:whale", set()),
        ("鯨", {"c1"}),
        ("100%", {"c1"}),
        ("", set()),
        ("\0", set()),
    ],
)
def test_search(history: ChatHistory, query: str, found: set[str]) -> None:
    talk(history, "The blue whale sings", "青い鯨は歌う 100%")
    assert {hit.message_id for hit in history.search(query)} == found


def test_search_finds_titles_and_follows_edits(history: ChatHistory) -> None:
    talk(history, "hi", "part", title="Krill and others")
    assert history.search("krill")[0].message_id is None
    history.update_message(
        ChatMessage("c1", "c", "c0", "assistant", "partial answer about plankton")
    )
    assert history.search("plankton")[0].message_id == "c1"


def test_hostile_text_is_kept_as_it_is(history: ChatHistory) -> None:
    hostile = "\x1b]52;c;aGk=\x07 [/x] \x9b31m \u202e ' OR 1=1; --"
    talk(history, hostile, "lone \ud800 surrogate")
    assert texts(history.thread("c")) == [hostile, "lone ? surrogate"]


def test_two_programs_write_at_once(tmp_path: Path) -> None:
    histories = [ChatHistory(tmp_path / "history.db") for _ in range(2)]
    threads = [
        threading.Thread(
            target=talk, args=(one, *["x"] * 20), kwargs={"chat": f"t{number}-"}
        )
        for number, one in enumerate(histories)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(histories[0].all_messages(f"t{number}-")) for number in range(2)] == [
        20,
        20,
    ]
    for one in histories:
        one.close()


def test_a_newer_file_is_opened_read_only(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    old = ChatHistory(path)
    talk(old, "hi")
    old.close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    newer = ChatHistory(path)
    assert "newer version" in (newer.read_only or "")
    assert texts(newer.thread("c")) == ["hi"]
    with pytest.raises(HistoryError, match="read-only"):
        newer.set_chat("c", title="x")
    newer.close()


def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_text(
        "this is a letter, not a database, and a rather long one at that" * 20
    )
    with pytest.raises(HistoryError, match="cannot be opened"):
        ChatHistory(path)
    assert path.read_text().startswith("this is a letter")


def test_a_full_disk_is_told_and_loses_nothing(history: ChatHistory) -> None:
    talk(history, "hi")
    pages = history._db.execute("PRAGMA page_count").fetchone()[0]
    history._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(HistoryError, match="full"):
        history.add_message(ChatMessage("big", "c", "c0", "assistant", "x" * 100_000))
    assert texts(history.thread("c")) == ["hi"]
    history._db.execute("PRAGMA max_page_count = 1000000")
    history.add_message(ChatMessage("big", "c", "c0", "assistant", "x" * 100_000))
    assert len(history.thread("c")) == 2


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "x.db", isolation_level=None)

    def fail(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE more (id)")
        raise RuntimeError("broke")

    migrate(db)
    with pytest.raises(RuntimeError):
        migrate(db, (lambda _: None, fail))
    assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    assert (
        db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone()[
            0
        ]
        == 0
    )
    db.close()


def test_settings(history: ChatHistory) -> None:
    assert history.setting("theme", "dark") == "dark"
    history.set_setting("presets", {"calm": {"temperature": 0}})
    assert history.setting("presets") == {"calm": {"temperature": 0}}


def test_markdown_export(history: ChatHistory) -> None:
    talk(history, "hi", "hello", title="A talk")
    history.set_chat("c", system="Be brief.")
    call = ToolCall("clock", '{"zone": "```"}')
    history.add_message(
        ChatMessage(
            "r", "c", "c1", "assistant", "so", "hm", (call,), MessageState.STOPPED, "m"
        )
    )
    text = to_markdown(history, "c")
    for part in (
        "# A talk",
        "## System\n\nBe brief.",
        "## You\n\nhi",
        "## Assistant (m)",
        "````json",
        "*(stopped)*",
    ):
        assert part in text


def test_json_goes_out_and_in_with_its_branches(history: ChatHistory) -> None:
    talk(history, "hi", "one")
    history.add_message(ChatMessage("again", "c", "c0", "assistant", "two"))
    text = to_json(history, "c")
    assert json.loads(text)["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "two"},
    ]
    (copy,) = import_json(history, text)
    assert texts(history.thread(copy)) == ["hi", "two"]
    assert texts(history.all_messages(copy)) == ["hi", "one", "two"]


def test_openai_json_comes_in(history: ChatHistory) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42"},
    ]
    for value in (messages, {"messages": messages}, [{"messages": messages}]):
        (chat,) = import_json(history, json.dumps(value))
        assert history.chat(chat).system == "Be brief."
        assert texts(history.thread(chat)) == ["a\nb", "", "[tool result]\n42"]
        assert history.thread(chat)[1].tool_calls == (ToolCall("f", "{}", "1"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("3", "is no chat"),
        ("[]", "empty"),
        ('{"messages": [{"role": "pilot", "content": ""}]}', "'pilot'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content must be text"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "image_url",
        ),
        ('{"messages": [], "tree": [{"id": "1"}]}', "tree cannot be read"),
        ('{"messages": [], "tree": [], "params": [1]}', "tree cannot be read"),
        ('{"messages": [], "title": 3}', "title"),
    ],
)
def test_a_bad_import_adds_nothing(history: ChatHistory, text: str, told: str) -> None:
    with pytest.raises(HistoryError, match=told):
        import_json(history, text)
    assert history.chats() == []


@pytest.mark.parametrize("seed", range(6))
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, seed: int) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "tui_kill.py"),
        "--write",
        str(tmp_path / "history.db"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        told = acknowledged(process, random.Random(seed).randrange(1, 120))
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read().decode().split("\n")
    assert check(tmp_path / "history.db", told) == []


def test_what_was_deleted_comes_back(history: ChatHistory) -> None:
    history.add_chat(Chat("undo", "kept"))
    history.add_message(ChatMessage("p", "undo", None, "user", "question"))
    history.add_message(ChatMessage("r", "undo", "p", "assistant", "answer"))
    deleted = history.delete_message("p")
    assert history.thread("undo") == []
    assert deleted is not None
    history.restore(deleted)
    assert [message.id for message in history.thread("undo")] == ["p", "r"]
    chat = history.delete_chat("undo")
    assert chat is not None and history.chat("undo") is None
    history.restore(chat)
    assert [message.id for message in history.thread("undo")] == ["p", "r"]
    assert history.delete_chat("nothing") is None


CHATGPT = {
    "title": "Tea",
    "current_node": "b2",
    "mapping": {
        "root": {"id": "root", "message": None, "parent": None},
        "a": {
            "message": {"author": {"role": "user"}, "content": {"parts": ["Which?"]}},
            "parent": "hidden",
        },
        "hidden": {
            "message": {"author": {"role": "system"}, "content": {"parts": [""]}},
            "parent": "root",
        },
        "b1": {
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["A"]}},
            "parent": "a",
        },
        "b2": {
            "message": {
                "author": {"role": "assistant"},
                "content": {"parts": ["B", {"image": 1}]},
            },
            "parent": "a",
        },
    },
}
OPEN_WEBUI = {
    "title": "Tea",
    "chat": {
        "history": {
            "currentId": "2",
            "messages": {
                "2": {"parentId": "1", "role": "assistant", "content": "B"},
                "1": {"parentId": None, "role": "user", "content": "Which?"},
            },
        }
    },
}


@pytest.mark.parametrize("value", [[CHATGPT], [OPEN_WEBUI]], ids=["chatgpt", "webui"])
def test_the_exports_of_others_come_in(history: ChatHistory, value: object) -> None:
    (chat_id,) = import_json(history, json.dumps(value))
    thread = history.thread(chat_id)
    assert [(one.role, one.text) for one in thread] == [
        ("user", "Which?"),
        ("assistant", "B"),
    ]
    chat = history.chat(chat_id)
    assert chat is not None and chat.title == "Tea"


def test_a_circle_in_an_export_ends(history: ChatHistory) -> None:
    nodes = {
        "1": {"parentId": "2", "role": "user", "content": "x"},
        "2": {"parentId": "1", "role": "assistant", "content": "y"},
    }
    value = {"chat": {"history": {"currentId": "2", "messages": nodes}}}
    (chat_id,) = import_json(history, json.dumps(value))
    assert len(history.all_messages(chat_id)) == 2
