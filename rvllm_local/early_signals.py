"""Signals that come while the command is still being imported end it cleanly.

Nothing has been begun by then. Python's own way is a traceback, or death by the signal.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

_INTERRUPTED = 130


def take_early_signals(words: Sequence[str]) -> None:
    """Take signals if this process is the `rvllm` command.

    A server ends with 0, as it does later; it takes signals itself once it listens.
    """
    verb = verb_of(words)
    if verb is None or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    if verb == "serve":
        signal.signal(signal.SIGINT, _end_well)
        signal.signal(signal.SIGTERM, _end_well)
    else:
        signal.signal(signal.SIGINT, _end_interrupted)


def give_interrupts_back() -> None:
    """From here on an interrupt is an exception, for those who handle it."""
    if signal.getsignal(signal.SIGINT) is _end_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def verb_of(words: Sequence[str]) -> str | None:
    """The verb of a process's words, "" without one; None if it is no `rvllm`."""
    for index, word in enumerate(words[:4]):
        if word == "rvllm_local.cli" or word.rpartition("/")[2] == "rvllm":
            return words[index + 1] if index + 1 < len(words) else ""
    return None


def _end_well(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _end_interrupted(_number: int, _frame: FrameType | None) -> None:
    sys.stderr.write("\n")
    os._exit(_INTERRUPTED)
