"""Scripts of completion have every verb and flag, and a shell that is here takes them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rvllm_local.commands.completion import SHELLS, completion, flags_by_verb, script
from rvllm_local.commands.verbs import VERBS, build_parser
from rvllm_local.errors import ParameterError


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_there(shell: str) -> None:
    flags = flags_by_verb(build_parser())
    assert list(flags) == list(VERBS)
    assert "--ollama-port" in flags["serve"] and "--json" in flags["ls"]
    text = script(shell, flags)
    for names in flags.values():
        for name in names:
            assert name.removeprefix("--") in text


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["rvllm", "laun"], ["launch"]),
        (["rvllm", "serve", "--olla"], ["--ollama-port"]),
        (["rvllm", "serve", "--nothing"], []),
    ],
)
def test_bash_completes(words: list[str], answers: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    line = " ".join(words)
    code = (
        f"{script('bash', flags_by_verb(build_parser()))}\nCOMP_WORDS=({line})\n"
        f'COMP_CWORD={len(words) - 1}\n_rvllm\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        [bash, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == answers


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ParameterError, match="bash, zsh, fish"):
        completion("tcsh", build_parser())
    assert completion("fish", build_parser()) == 0
    assert "__fish_use_subcommand" in capsys.readouterr().out
