"""aider edits a file with a model of this server, set up as documented.

It runs where RVLLM_MORE_AGENTS=1 asks for it, in an environment of its own from PyPI.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rvllm_local.commands.launch.agents import load_agents
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import Request
from tests.api.test_agents import ADDRESS, DOCUMENTATION, FILES, statuses
from tests.support.api import served
from tests.support.pypi import environment
from tests.support.scripted import ScriptedClient

PACKAGE = "aider-chat==0.86.2"
WORDS = ["--model", "openai/default", "--no-show-model-warnings"]
QUIET = ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable"]
SET_UP = FILES / "aider.sh"
EDIT = """hello.py
```
<<<<<<< SEARCH
=======
print("hi")
>>>>>>> REPLACE
```
"""


class EditingEngine(ScriptedClient):
    """Answers with one edit."""

    def script(self, request: Request) -> str:
        return EDIT


def test_the_documentation_shows_what_runs() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    assert SET_UP.read_text(encoding="utf-8").strip() in text
    assert " ".join(WORDS) in text
    assert load_agents()["aider"].package == PACKAGE
    assert PACKAGE.partition("==")[2] in text


@pytest.mark.skipif(
    os.environ.get("RVLLM_MORE_AGENTS") != "1", reason="RVLLM_MORE_AGENTS=1 runs it"
)
def test_a_file_is_edited(tiny: Path, tmp_path: Path) -> None:
    python = environment(PACKAGE)
    engine = EditingEngine(read_tokenizer(ModelFiles("folder", tiny, "tiny")))
    engine.limits = type(engine.limits)(384, 100_000, 100_000, (0,), 12)
    with served({"tiny": tiny}, opener=lambda files, options: engine) as running:
        text = SET_UP.read_text(encoding="utf-8")
        text = text.replace(ADDRESS, f"http://127.0.0.1:{running.port}")
        lines = [line.removeprefix("export ") for line in text.splitlines()]
        variables = dict(line.split("=", 1) for line in lines)
        home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "dumb"}
        more = ["--edit-format", "diff", "--message", "write hello.py"]
        done = subprocess.run(
            [str(python), "-m", "aider", *WORDS, *QUIET, *more],
            cwd=tmp_path,
            env={**home, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "hello.py").read_text() == 'print("hi")\n'
        assert set(statuses(running)) == {"200"}
