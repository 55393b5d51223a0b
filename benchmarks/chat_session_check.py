"""Checks what `chat_session.sh` kept: the final screens, and the history behind them.

python benchmarks/chat_session_check.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState

EXPECTED = {
    "1-stopped": ("Tell me a long story", "■ stopped"),
    "2-continued": ("Go on.", "ctx", "tok/s", "ttft"),
    "3-branched": ("‹ 2/2 ›",),
    "4-sibling": ("‹ 1/2 ›",),
    "5-search": ("Chats", "whale"),
    "6-found": ("Go on.",),
    "7-model": ("Models",),
    "8-engine": ("Blocks",),
    "9-quit": ("ended with 0",),
    "10-reopened": ("Go on.",),
    "11-quit": ("ended with 0",),
}


def main() -> None:
    folder = Path(sys.argv[1])
    problems = []
    for name, parts in EXPECTED.items():
        shown = (folder / f"{name}.txt").read_text(encoding="utf-8")
        problems += [
            f"{name}: {part!r} is missing" for part in parts if part not in shown
        ]
        problems += [
            f"{name}: a control character"
            for one in shown
            if ord(one) < 32 and one != "\n"
        ]
    history = ChatHistory(folder / "history.db")
    (chat,) = history.chats()
    every = history.all_messages(chat.id)
    prompts = [message.text for message in every if message.role == "user"]
    replies = [message for message in every if message.role == "assistant"]
    if prompts != ["Tell me a long story about a whale.", "Go on."]:
        problems.append(f"the prompts in the history are {prompts}")
    if (
        len(replies) != 3
        or replies[0].state is not MessageState.STOPPED
        or not replies[0].text
    ):
        problems.append(
            f"the replies in the history are {[(one.state, len(one.text)) for one in replies]}"
        )
    history.close()
    print(
        "\n".join(problems)
        or f"{len(EXPECTED)} screens and the history are as they should be ({folder})"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
