"""A parser that takes words and flags in any order. Loads nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class AnyOrderParser(argparse.ArgumentParser):
    """Takes `MODEL --seed 3 PROMPT` as well as `MODEL PROMPT --seed 3`.

    argparse fills all positional arguments from the first run of words, and refuses
    the words behind a flag. So the flags are read first here, and the words that are
    left after that. All behind `--` are words.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        if self._subparsers is not None:
            return super().parse_known_args(words, namespace)
        words, literal = _split(words)
        namespace, words = self._parse_flags(words, namespace)
        return super().parse_known_args([*words, *literal], namespace)

    def _parse_flags(
        self, words: list[str], namespace: Any
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read the flags. Returns the words that are none."""
        actions = self._actions
        self._actions = self._get_optional_actions()
        self.exit_on_error = False
        try:
            return super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            message = str(error)
        finally:
            self._actions = actions
            self.exit_on_error = True
        return self.error(message)  # after the exchange, for a usage with all words


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and those from it on."""
    if "--" not in words:
        return words, []
    index = words.index("--")
    return words[:index], words[index:]
