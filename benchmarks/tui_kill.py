"""kill -9 at random moments while a chat is being written: the history opens, and nothing acknowledged is lost.

python benchmarks/tui_kill.py --moments 50
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def write(path: Path) -> None:
    """Prompts and growing replies until killed; each line out is `id length`, printed once the write has returned."""
    from rvllm_local.history import ChatHistory
    from rvllm_local.history.types import Chat, ChatMessage, MessageState

    history = ChatHistory(path)
    history.add_chat(Chat("c"))
    parent, number = None, 0
    while True:
        prompt = ChatMessage(f"p{number}", "c", parent, "user", "why? " * 50)
        history.add_message(prompt)
        print(prompt.id, len(prompt.text), flush=True)
        text = ""
        for part in range(4):
            text += "because " * 200
            state = MessageState.PARTIAL if part < 3 else MessageState.DONE
            reply = ChatMessage(
                f"r{number}", "c", prompt.id, "assistant", text, state=state
            )
            (history.update_message if part else history.add_message)(reply)
            print(reply.id, len(text), flush=True)
        parent, number = f"r{number}", number + 1


def acknowledged(process: subprocess.Popen[bytes], lines: int) -> list[str]:
    """Wait until the writer has acknowledged so many writes."""
    assert process.stdout is not None
    return [process.stdout.readline().decode().strip() for _ in range(lines)]


def check(path: Path, lines: list[str]) -> list[str]:
    """What is wrong with the history after the kill; empty is good. `lines` is what the writer acknowledged."""
    from rvllm_local.history import ChatHistory

    history = ChatHistory(path)
    problems = []
    if (state := history._read("PRAGMA integrity_check")[0][0]) != "ok":
        problems.append(f"integrity: {state}")
    kept = {message.id: len(message.text) for message in history.all_messages("c")}
    for line in lines:
        parts = line.split()
        if len(parts) == 2 and kept.get(parts[0], -1) < int(parts[1]):
            problems.append(
                f"{parts[0]} was acknowledged at {parts[1]} characters and has {kept.get(parts[0])}"
            )
    if len(history.thread("c")) != len(kept):
        problems.append("the thread is broken")
    history.close()
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument(
        "--write", type=Path, help="be the writer (used by this script itself)"
    )
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
    lost = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for moment in range(arguments.moments):
            path = Path(folder, f"{moment}.db")
            with subprocess.Popen(
                [sys.executable, __file__, "--write", str(path)],
                stdout=subprocess.PIPE,
                cwd=ROOT,
            ) as process:
                told = acknowledged(process, random.Random(moment).randrange(1, 300))
                os.kill(process.pid, signal.SIGKILL)
                assert process.stdout is not None
                told += process.stdout.read().decode().split("\n")
            problems = check(path, told)
            total += len(told)
            lost += len(problems)
            for problem in problems:
                print(f"moment {moment}: {problem}")
    print(f"{arguments.moments} kills, {total} acknowledged writes, {lost} problems")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
