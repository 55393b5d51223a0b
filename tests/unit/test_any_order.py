"""Words and flags of the command line come in any order."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from rvllm_local.commands.verbs import build_parser


def parsed(line: str) -> dict[str, Any]:
    return vars(build_parser().parse_args(shlex.split(line)))


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("run M 'why is it so'", ["why is it so"]),
        ("run M --seed 3 'why is it so'", ["why is it so"]),
        ("run --seed 3 M why is it so", ["why", "is", "it", "so"]),
        ("run M why is --seed 3 it so", ["why", "is", "it", "so"]),
        ("run M why is it so --seed=3", ["why", "is", "it", "so"]),
        ("run M --seed 3 --no-self-check -5", ["-5"]),
        ("run M --seed 3 -- --seed what", ["--seed", "what"]),
        ("run --seed 3 -- M --seed", ["--seed"]),
        ("run M --seed 3", []),
    ],
)
def test_a_prompt_may_stand_anywhere(line: str, prompt: list[str]) -> None:
    arguments = parsed(line)
    assert arguments["model"] == "M"
    assert arguments["prompt"] == prompt
    assert arguments["seed"] == (3 if "3" in line else None)


@pytest.mark.parametrize(
    ("line", "name", "words"),
    [
        ("chat M --plain is it so", "words", ["M", "is", "it", "so"]),
        ("serve a --port 1 b --lenient c", "models", ["a", "b", "c"]),
        ("rm a --yes b", "models", ["a", "b"]),
        ("search qwen --limit 3 coder", "words", ["qwen", "coder"]),
        ("bench compare a.json --stable b.json", "after", "b.json"),
    ],
)
def test_every_verb_takes_words_behind_flags(line: str, name: str, words: Any) -> None:
    assert parsed(line)[name] == words


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("run", "required: model"),
        ("run --seed 3", "required: model"),
        ("run M --seed x hi", "argument --seed: invalid int value: 'x'"),
        ("run M --nope hi", "unrecognized arguments: --nope"),
        ("run M hi --seed", "argument --seed: expected one argument"),
        ("plan M more", "unrecognized arguments: more"),
    ],
)
def test_a_wrong_line_is_refused_by_what_is_wrong(
    line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(line)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
