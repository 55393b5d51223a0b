"""Coding agents run a tool loop against a server with default flags, set up as documented.

They come from the package registry at pinned versions; where it cannot be reached, or
there is no Node, these tests are skipped. The engine plays a model that calls the
agent's own tool three times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.agent_engine import DONE, AgentEngine, Play, common_prefix
from tests.support.api import Running, served

CONTEXT = 1_000_000  # the tiny vocabulary needs a token for nearly every letter
QUESTION = "say hi three times"
ADDRESS = "http://127.0.0.1:8473"  # as in the files that the documentation shows
FILES = Path(__file__).parent / "agents"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "api.md"


@dataclass(frozen=True)
class Agent:
    """One agent: its package, its command, and the tool of its own that is called.

    `file` is its set-up, which goes to `place` in an empty home; one without a place
    holds variables.
    """

    package: str
    command: tuple[str, ...]
    play: Play
    file: str
    place: str | None = None

    def set_up(self, home: Path, address: str) -> dict[str, str]:
        """Write the set-up, or return its variables."""
        text = (FILES / self.file).read_text(encoding="utf-8")
        text = text.replace(ADDRESS, address)
        if self.place is None:
            lines = [line.removeprefix("export ") for line in text.splitlines()]
            return dict(line.split("=", 1) for line in lines)
        path = home / self.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return {}


SHELL = {"command": "echo hi", "description": "says hi"}
AGENTS = {
    "codex": Agent(
        "@openai/codex@0.171.0",
        (
            "codex",
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            QUESTION,
        ),
        Play("exec_command", {"cmd": "echo hi"}),
        "codex.toml",
        ".codex/config.toml",
    ),
    "claude": Agent(
        "@anthropic-ai/claude-code@2.1.197",
        ("claude", "-p", QUESTION, "--allowedTools", "Bash"),
        Play("Bash", SHELL),
        "claude.sh",
    ),
    "opencode": Agent(
        "opencode-ai@1.18.33",
        ("opencode", "run", QUESTION),
        Play("bash", SHELL),
        "opencode.json",
        ".config/opencode/opencode.json",
    ),
    "pi": Agent(
        "@mariozechner/pi-coding-agent@0.73.1",
        ("pi", "-p", "--provider", "rvllm", "--model", "default", QUESTION),
        Play("bash", {"command": "echo hi"}),
        "pi.json",
        ".pi/agent/models.json",
    ),
    "qwen": Agent(
        "@qwen-code/qwen-code@0.24.4",
        ("qwen", "--auth-type", "openai", "--yolo", "-p", QUESTION),
        Play("run_shell_command", {**SHELL, "is_background": False}),
        "qwen.sh",
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_the_documentation_shows_what_runs(name: str) -> None:
    agent, text = AGENTS[name], DOCUMENTATION.read_text(encoding="utf-8")
    assert (FILES / agent.file).read_text(encoding="utf-8").strip() in text
    version = agent.package.rpartition("@")[2]
    assert version in text


@pytest.fixture(scope="module", params=AGENTS)
def agent(request: pytest.FixtureRequest) -> Agent:
    return AGENTS[request.param]


@pytest.fixture(scope="module")
def binaries(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the installed agent's commands."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node and npm")
    folder = tmp_path_factory.mktemp("agent")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
    try:
        done = subprocess.run(
            [*command, agent.package], capture_output=True, timeout=200
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry is too slow")
    if done.returncode:
        pytest.skip("the package registry cannot be reached")
    return folder / "node_modules" / ".bin"


@contextmanager
def playing(tiny: Path, play: Play) -> Iterator[tuple[Running, list[AgentEngine]]]:
    """A server with default flags over an engine that plays, and that engine."""
    engines: list[AgentEngine] = []

    def opener(files: Any, options: Any) -> AgentEngine:
        engines.append(AgentEngine(read_tokenizer(files), play, CONTEXT))
        return engines[-1]

    with served({"tiny": tiny}, opener=opener) as running:
        yield running, engines


def run(agent: Agent, binaries: Path, home: Path, address: str) -> str:
    """What the agent prints in one session of its own."""
    environ = {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        **agent.set_up(home, address),
    }
    work = home / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(binaries / agent.command[0]), *agent.command[1:]],
        cwd=work,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_two_sessions_with_a_tool_loop_each(
    agent: Agent, binaries: Path, tiny: Path, tmp_path: Path
) -> None:
    with playing(tiny, agent.play) as (running, engines):
        address = f"http://127.0.0.1:{running.port}"
        for _ in range(2):
            assert DONE in run(agent, binaries, tmp_path, address)
        text = running.client.get("/metrics").text
    refused = [
        line
        for line in text.splitlines()
        if line.startswith("rvllm_http_responses_total") and "200" not in line
    ]
    # Some agents ask once whether anything answers at "/": 404, and they go on.
    assert all('"404"' in line for line in refused)
    check_prefixes(engines[0].prompts)


def check_prefixes(prompts: list[tuple[int, ...]]) -> None:
    """At least 95 % of every later turn, and of a second session, was there before."""
    longest = max(map(len, prompts))
    turns = [index for index, row in enumerate(prompts) if len(row) > longest // 2]
    assert len(turns) == 8, "two sessions of three calls and an answer each"
    for index in turns[1:]:
        prompt = prompts[index]
        shared = max(common_prefix(prompt, other) for other in prompts[:index])
        assert shared >= 0.95 * len(prompt)
