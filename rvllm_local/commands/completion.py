"""`rvllm completion`: a script that completes verbs and flags, made of the parser."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from rvllm_local.errors import ParameterError

Flags = Mapping[str, Sequence[str]]
SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, parser: argparse.ArgumentParser) -> int:
    """Print the script of a shell for a command line that `parser` reads."""
    if shell not in SHELLS:
        shells = ", ".join(SHELLS)
        raise ParameterError("shell", f"{shell[:80]!r} is not completed; use {shells}")
    print(script(shell, flags_by_verb(parser)), end="")
    return 0


def flags_by_verb(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The long flags of every verb."""
    flags: dict[str, list[str]] = {}
    for name, verb_parser in _subparsers(parser).items():
        flags[name] = []
        for action in verb_parser._actions:
            for text in action.option_strings:
                if text.startswith("--"):
                    flags[name].append(text)
    return flags


def script(shell: str, flags: Flags) -> str:
    """The script. Where no flag is begun, the shell completes files."""
    if shell == "fish":
        return _fish(flags)
    text = _bash(flags)
    if shell == "zsh":
        return f"autoload -U +X bashcompinit && bashcompinit\n{text}"
    return text


def _bash(flags: Flags) -> str:
    lines = [
        "_rvllm() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}"',
        '    if [ "$COMP_CWORD" -eq 1 ]; then',
        f'        COMPREPLY=($(compgen -W "{" ".join(flags)}" -- "$word"))',
        "        return",
        "    fi",
        '    case "${COMP_WORDS[1]}:$word" in',
    ]
    for verb, names in flags.items():
        words = " ".join(names)
        reply = f'COMPREPLY=($(compgen -W "{words}" -- "$word"))'
        lines.append(f"        {verb}:-*) {reply} ;;")
    lines += [
        '        *) COMPREPLY=($(compgen -f -- "$word")) ;;',
        "    esac",
        "}",
        "complete -o filenames -F _rvllm rvllm",
    ]
    return "\n".join(lines) + "\n"


def _fish(flags: Flags) -> str:
    verbs = " ".join(flags)
    head = "complete -c rvllm -n __fish_use_subcommand -f -a"
    lines = [f"{head} '{verbs}'"]
    for verb, names in flags.items():
        condition = f"'__fish_seen_subcommand_from {verb}'"
        for name in names:
            flag = name.removeprefix("--")
            lines.append(f"complete -c rvllm -n {condition} -l {flag}")
    return "\n".join(lines) + "\n"


def _subparsers(
    parser: argparse.ArgumentParser,
) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers: Mapping[str, argparse.ArgumentParser] = action.choices
            return parsers
    return {}
