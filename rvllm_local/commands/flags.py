"""The flags that shape an engine, made from the options. Loads nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from rvllm_local.option import Option
from rvllm_local.options import option_table

_METAVARS = {
    "size": "SIZE",
    "count": "N",
    "choice": "KIND",
    "folder": "DIR",
    "name": "NAME",
}


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each option; it wins over environment and configuration file."""
    group = parser.add_argument_group("engine")
    for option in option_table().values():
        flag = f"--{option.name.replace('_', '-')}"
        if option.kind == "switch":
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=None, help=option.help)
        else:
            group.add_argument(flag, metavar=_metavar(option), help=option.help)


def engine_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags."""
    return {
        name: getattr(arguments, name)
        for name in option_table()
        if getattr(arguments, name) is not None
    }


def _metavar(option: Option) -> str:
    return _METAVARS[option.kind]
