"""Writes docs/commands.md: all verbs and flags of `rvllm`, and the engine's options.

python -m scripts.commands_page
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rvllm_local.commands.verbs import VERBS, build_parser
from rvllm_local.option import Option
from rvllm_local.options import option_table

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
_HEAD = """\
# Commands

All verbs and flags of `rvllm`. The page is made of the code by
`python -m scripts.commands_page`, and a test holds it against the code.

`rvllm --version` prints the version, `rvllm VERB --help` the flags of a verb. The exit
status is 0, 1 for a failure, 2 for bad input and 130 for Ctrl-C.
"""
_OPTIONS = """\
## The engine's options

`run`, `serve` and `plan` take each of them as a flag. Each is a key of `config.toml`,
too, and an argument of `LLM(...)`; `RVLLM_<KEY>` in the environment gives it to every
verb. A flag wins over the environment, the environment over the file. `rvllm config`
prints what comes of it.

| flag | key | default | |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, verb in VERBS.items():
        parser = _subparsers(build_parser())[name]
        parts.append(_section(f"rvllm {name}", verb.help, parser, "##"))
        for below, child in _subparsers(parser).items():
            about = _help_of(parser, below)
            parts.append(_section(f"rvllm {name} {below}", about, child, "###"))
    rows = "".join(_option_row(option) for option in option_table().values())
    parts.append(_OPTIONS + rows)
    return "\n".join(parts)


def _section(
    title: str, about: str, parser: argparse.ArgumentParser, level: str
) -> str:
    """One verb. Engine flags have a table of their own, for all verbs."""
    arguments = [action for action in parser._actions if not _is_common(action, parser)]
    text = f"{level} {title}\n\n{about[0].upper()}{about[1:]}.\n"
    if _has_engine_flags(parser):
        text += "It takes [the engine's options](#the-engines-options), too.\n"
    if arguments:
        text += "\n| argument | |\n|---|---|\n"
        text += "".join(_argument_row(action) for action in arguments)
    return text


def _is_common(action: argparse.Action, parser: argparse.ArgumentParser) -> bool:
    is_engine_flag = _has_engine_flags(parser) and action.dest in option_table()
    is_group = isinstance(action, argparse._SubParsersAction)
    return action.dest == "help" or is_engine_flag or is_group


def _has_engine_flags(parser: argparse.ArgumentParser) -> bool:
    destinations = {action.dest for action in parser._actions}
    return set(option_table()) <= destinations


def _argument_row(action: argparse.Action) -> str:
    about = action.help or ""
    is_told = action.default not in (None, False, [], "") and "(" not in about
    if is_told:
        about += f" ({_default(action.default)})"
    return f"| {_usage(action)} | {about.strip()} |\n"


def _default(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest.upper()}`"
    if action.nargs == 0:
        value = ""
    elif isinstance(action.metavar, tuple):
        value = " " + " ".join(action.metavar)
    elif action.choices is not None:
        value = " " + " or ".join(action.choices)
    else:
        value = f" {action.metavar or action.dest.upper()}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def _option_row(option: Option) -> str:
    flag = f"--{option.name.replace('_', '-')}"
    default = "automatic" if option.default is None else str(option.default).lower()
    return f"| `{flag}` | `{option.name}` | {default} | {option.help} |\n"


def _subparsers(
    parser: argparse.ArgumentParser,
) -> dict[str, argparse.ArgumentParser]:
    for action in _groups(parser):
        return dict(action.choices)
    return {}


def _help_of(parser: argparse.ArgumentParser, name: str) -> str:
    for group in _groups(parser):
        for choice in group._choices_actions:
            if choice.dest == name:
                return choice.help or ""
    return ""


def _groups(
    parser: argparse.ArgumentParser,
) -> Iterator[argparse._SubParsersAction[argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield action


if __name__ == "__main__":
    PAGE.write_text(page())
