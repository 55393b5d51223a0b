"""`rvllm launch` with the real agents: a tool loop, a private profile, nothing left.

They come from the package registry at pinned versions; where it cannot be reached, or
there is no Node, these tests are skipped. The engine plays a model that calls the
agent's own tool.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.commands.launch.agents import load_agents
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.api.test_agents import CONTEXT, statuses
from tests.support.agent_engine import (
    COMMAND,
    DONE,
    AgentEngine,
    Play,
    common_prefix,
)
from tests.support.agent_sessions import sessions_of
from tests.support.api import served
from tests.support.npm import Packages

# All agents and a long loop take many minutes of processor time; two agents and a short
# one show that launching works.
IS_LONG = os.environ.get("RVLLM_LONG_AGENTS") == "1"
NUM_CALLS = 40 if IS_LONG else 3
QUESTION = "say hi many times"


@dataclass(frozen=True)
class Job:
    """What an agent is asked, in its own words, and the tool of its own that is called.

    `configuration` is a file of the user's own that must stay as it is.
    """

    arguments: tuple[str, ...]
    play: Play
    configuration: str


SHELL = {"command": COMMAND, "description": "says hi"}
JOBS = {
    "claude": Job(
        ("-p", QUESTION, "--allowedTools", "Bash"),
        Play("Bash", SHELL, NUM_CALLS),
        ".claude/settings.json",
    ),
    "codex": Job(
        (
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            QUESTION,
        ),
        Play("exec_command", {"cmd": COMMAND}, NUM_CALLS),
        ".codex/config.toml",
    ),
    "opencode": Job(
        ("run", QUESTION),
        Play("bash", SHELL, NUM_CALLS),
        ".config/opencode/opencode.json",
    ),
    "pi": Job(
        ("-p", QUESTION),
        Play("bash", {"command": COMMAND}, NUM_CALLS),
        ".pi/agent/models.json",
    ),
    "qwen": Job(
        ("--yolo", "-p", QUESTION),
        Play("run_shell_command", {**SHELL, "is_background": False}, NUM_CALLS),
        ".qwen/settings.json",
    ),
}
AGENTS = load_agents()
NAMES = list(JOBS) if IS_LONG else ["codex", "pi"]


class NumberingEngine(AgentEngine):
    """Calls the tool with another command each time: agents end a loop of equal calls."""

    def _call(self, arguments: Mapping[str, Any]) -> str:
        numbered = dict(arguments)
        for name, value in arguments.items():
            if value == COMMAND:
                numbered[name] = f"{COMMAND} {len(self.prompts)}"
        return super()._call(numbered)


@dataclass(frozen=True)
class Session:
    """What came of one session."""

    engine: AgentEngine
    text: str
    code: int
    statuses: dict[str, int]
    configuration: str
    left: list[str]  # processes of the session that still ran at its end


def run_session(name: str, packages: Packages, home: Path, tiny: Path) -> Session:
    """Launch the agent on a server in this process."""
    job = JOBS[name]
    folder = packages.folder(AGENTS[name].package)
    tokenizer = read_tokenizer(ModelFiles("folder", tiny, "tiny"))
    engine = NumberingEngine(tokenizer, job.play, CONTEXT)
    own_file = home / job.configuration
    own_file.parent.mkdir(parents=True)
    own_file.write_text("{}")
    work = home / "work"
    work.mkdir()
    binaries = folder / "node_modules" / ".bin"
    environ = {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(home),
        "TERM": "dumb",
        "RVLLM_MARK": str(home),
    }
    with served({"tiny": tiny}, opener=lambda files, options: engine) as running:
        running.post({"prompt": "x"}, "/tokenize")  # loaded: its context is known
        url = f"http://127.0.0.1:{running.port}"
        program = [sys.executable, "-m", "rvllm_local.cli", "launch", "--url", url]
        done = subprocess.run(
            [*program, name, "--", *job.arguments],
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500 if IS_LONG else 240,
        )
        counts = statuses(running)
    return Session(
        engine,
        done.stdout,
        done.returncode,
        counts,
        own_file.read_text(),
        processes_with(f"RVLLM_MARK={home}"),
    )


def processes_with(mark: str) -> list[str]:
    """Commands of processes whose environment holds a mark, where that can be read."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                command = path.with_name("cmdline").read_bytes()
                commands.append(command.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return commands


@pytest.fixture(scope="module")
def sessions(
    request: pytest.FixtureRequest,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[Session]]]:
    """The sessions of the agents that were selected, which run in the background."""
    run = functools.partial(run_session, tiny=tiny)
    with sessions_of(request, tmp_path_factory, run) as futures:
        yield futures


@pytest.mark.timeout(3600 if IS_LONG else 900)
@pytest.mark.parametrize("name", NAMES)
def test_a_long_tool_loop(name: str, sessions: dict[str, Future[Session]]) -> None:
    session = sessions[name].result()
    assert DONE in session.text, session.text[-2000:]
    assert session.code == 0
    assert set(session.statuses) == {"200"}
    assert session.configuration == "{}"
    assert session.left == []
    check_cached(session.engine.prompts)


def check_cached(prompts: list[tuple[int, ...]]) -> None:
    """At least 95 % of each prompt of the loop from its second on was there before."""
    longest = max(map(len, prompts))
    turns = [index for index, row in enumerate(prompts) if len(row) > longest // 2]
    assert len(turns) >= NUM_CALLS
    for index in turns[1:]:
        prompt = prompts[index]
        shared = max(common_prefix(prompt, other) for other in prompts[:index])
        assert shared >= 0.95 * len(prompt)
