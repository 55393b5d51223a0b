"""The plain mode: pipes, scripts, screen readers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_local.commands.chat import _run_on_screen
from rvllm_local.history import ChatHistory
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.plain import Plain
from rvllm_local.tui.start import Request, read_words
from tests.tui.fake_endpoint import FakeEndpoint


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rvllm_chat(
    *arguments: str, stdin: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rvllm_local.cli", "chat", *arguments]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )


def talk(
    fake: FakeEndpoint, typed: str, history: Path | None, out: io.StringIO | None = None
) -> tuple[int, str, str]:
    """A person at a terminal who types these lines."""
    out, err = out or Terminal(), io.StringIO()
    plain = Plain(
        ChatOptions(history), ServerLauncher(fake.url, None), Terminal(typed), out, err
    )
    return asyncio.run(plain.run()), out.getvalue(), err.getvalue()


def test_a_pipe_gets_the_reply_and_nothing_else(tmp_path: Path) -> None:
    with FakeEndpoint({"why?\n": ["Because\x1b[2J ", "so."]}) as fake:
        done = rvllm_chat(
            "--plain",
            "--endpoint",
            fake.url,
            stdin="why?\n",
            RVLLM_HISTORY=str(tmp_path / "h.db"),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Because␛[2J so.\n", "")
    history = ChatHistory(tmp_path / "h.db")
    assert [message.text for message in history.thread(history.chats()[0].id)] == [
        "why?\n",
        "Because\x1b[2J so.",
    ]
    history.close()


def test_what_is_split_between_deltas_is_whole_or_harmless(tmp_path: Path) -> None:
    with FakeEndpoint(
        {
            "hi": [
                "a\ud83d",
                "\ude00b\r",
                "\nc \x1b",
                "[2J\x1b]",
                "52;c;x\x07",
                "end\ud83d",
            ]
        }
    ) as fake:
        status, said, _ = talk(fake, "hi\n", tmp_path / "h.db")
    assert (status, said) == (0, "a😀b\nc ␛[2J␛]52;c;x␇end\ufffd\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "told"),
    [
        (["--endpoint", "127.0.0.1:9"], "hi", 1, "no server answers"),
        (["--endpoint", "ftp://x"], "hi", 1, "is no endpoint"),
        (["--theme", "pink"], "hi", 2, "no theme 'pink'"),
    ],
)
def test_what_goes_wrong_is_one_line(
    tmp_path: Path, arguments: list[str], stdin: str, status: int, told: str
) -> None:
    done = rvllm_chat(*arguments, stdin=stdin, RVLLM_HISTORY=str(tmp_path / "h.db"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert told in done.stderr


def test_a_conversation_in_lines(tmp_path: Path) -> None:
    typed = (
        "hi\n/set temperature 0.1\n/system Be brief.\nmore\n/regenerate\n/rename Talk\n/chats\n/chats hello\n"
        f"/open 1\n/model\n/model large\n/export {tmp_path}/x.md\n/new\n/temporary\n/help\n/find x\n/nonsense\n/open 9\n/quit\n"
    )
    with FakeEndpoint() as fake:
        status, out, err = talk(fake, typed, tmp_path / "h.db")
    assert status == 0
    assert out.count("Hello there.") == 5  # three replies, and two that were opened
    for part in (
        "small  ctx",
        "1. Talk",
        "1. small",
        "exported",
        "needs the full chat",
        "there is no command /nonsense",
        "not on the last list",
    ):
        assert part in err, part
    assert fake.requests[1]["temperature"] == 0.1
    assert fake.requests[1]["messages"][0]["content"] == "Be brief."
    assert "# Talk" in (tmp_path / "x.md").read_text()


def test_a_terminal_is_protected_and_a_failure_is_told(tmp_path: Path) -> None:
    with FakeEndpoint(
        {"hi": [{"reasoning_content": "hm"}, "\u202ex\x9b", "cut"]}
    ) as fake:
        status, out, err = talk(fake, "hi\n", None)
    assert (status, out) == (0, "‹202E›x‹9B›\n")
    assert "(thinking)" in err
    assert "closed the connection" in err


def test_no_history_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    (tmp_path / "h.db").write_text("no database" * 99)
    with FakeEndpoint() as fake:
        status, out, err = talk(fake, "hi\n", tmp_path / "h.db")
    assert (status, out) == (0, "Hello there.\n")
    assert "This chat is not kept" in err


def test_the_prompt_flag_and_the_key(tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        done = rvllm_chat(
            "-p",
            "hi",
            "--endpoint",
            fake.url,
            "--temporary",
            stdin="",
            RVLLM_API_KEY="k",
            RVLLM_HISTORY=str(tmp_path / "h.db"),
        )
        assert (done.returncode, done.stdout) == (0, "Hello there.\n")
        assert fake.headers[0]["Authorization"] == "Bearer k"
        assert (
            json.dumps(fake.requests[0]["messages"])
            == '[{"role": "user", "content": "hi"}]'
        )


def ask(fake: FakeEndpoint, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    options = ("--endpoint", fake.url, "--no-history", *arguments)
    done = rvllm_chat(*options, stdin=stdin)
    return done.returncode, done.stdout, done.stderr


def last_prompt(fake: FakeEndpoint) -> str:
    return fake.requests[-1]["messages"][-1]["content"]


def test_words_are_a_question_and_the_pipe_is_its_context() -> None:
    with FakeEndpoint() as fake:
        asked = ask(fake, "Why is it so?", "--set", "temperature=0", stdin="a\nb\n")
        assert asked == (0, "Hello there.\n", "")
        assert last_prompt(fake) == "Why is it so?\n\na\nb"
        assert fake.requests[-1]["temperature"] == 0
        status, _, problem = ask(fake, "hm?", "--set", "temperature")
        assert (status, "must be NAME=VALUE" in problem) == (2, True)


def test_files_are_attached_and_missing_ones_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text("x = 1\n")
    with FakeEndpoint() as fake:
        assert ask(fake, "-p", f"explain @{file}")[0] == 0
        assert "x = 1" in last_prompt(fake)
        status, _, problem = ask(fake, "-p", "explain @nofile.py")
        assert status != 0 and "@nofile.py: there is no such file" in problem


def test_an_answer_as_json() -> None:
    with FakeEndpoint() as fake:
        status, out, _ = ask(fake, "--json", "-p", "hi")
    answer = json.loads(out)
    assert (status, answer["text"], answer["state"]) == (0, "Hello there.", "done")
    assert answer["prompt_tokens"] == 12


def test_a_reader_that_goes_ends_it_quietly() -> None:
    words = ["word\n" * 50] * 400
    with FakeEndpoint({"hi": words}) as fake:
        command = f"{sys.executable} -m rvllm_local.cli chat --no-history"
        line = f"{command} --endpoint {fake.url} -p hi </dev/null | head -1"
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=240, check=False
        )
    assert (done.stdout, done.stderr) == ("word\n", "")


@pytest.mark.parametrize(
    ("words", "model", "prompt"),
    [
        ([], None, None),
        (["qwen3-4b"], "qwen3-4b", None),
        (["Why is the sky blue?"], None, "Why is the sky blue?"),
        (["why", "is", "it", "so"], None, "why is it so"),
        (["qwen3-4b", "why", "so"], "qwen3-4b", "why so"),
        (["owner/name", "why"], "owner/name", "why"),
        (["Hello!"], None, "Hello!"),
        (["why?"], None, "why?"),
        (["./models/tiny.gguf"], "./models/tiny.gguf", None),
        (["owner/name@main"], "owner/name@main", None),
    ],
)
def test_words_are_a_model_or_a_question(words, model, prompt) -> None:
    assert read_words(words, {"qwen3-4b"}) == Request(model, prompt)


@pytest.mark.parametrize(("answer", "code", "status"), [(None, 1, 1), (0, 0, 0)])
def test_a_crash_of_the_app_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, answer: int | None, code: int, status: int
) -> None:
    class Ended:
        """An app that has run: Textual gives no answer after a crash."""

        return_code = code

        def __init__(self, *_: object) -> None: ...

        def run(self) -> int | None:
            return answer

    monkeypatch.setattr("rvllm_local.tui.app.ChatApp", Ended)
    launcher = ServerLauncher("127.0.0.1:9", None)
    assert _run_on_screen(ChatOptions(), launcher, asks_ground=False) == status
