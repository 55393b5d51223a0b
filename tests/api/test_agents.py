"""Coding agents run a tool loop against a server with default flags, set up as documented.

They come from the package registry at pinned versions; where it cannot be reached, or
there is no Node, these tests are skipped. The engine plays a model that calls the
agent's own tool three times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.agent_engine import DONE, AgentEngine, Play, common_prefix
from tests.support.api import Running, served

CONTEXT = 1_000_000  # the tiny vocabulary needs a token for nearly every letter
FIRST_TURN_PROMPT = "say hi three times"
CODEX_CONFIG = """\
model = "tiny"
model_provider = "rvllm"

[model_providers.rvllm]
name = "rvllm"
base_url = "{address}/v1"
wire_api = "responses"
"""


@dataclass(frozen=True)
class Agent:
    """One agent: its package, how it is set up in an empty home, and its command."""

    package: str
    command: tuple[str, ...]
    play: Play
    set_up: Callable[[Path, str], Mapping[str, str]]


def set_up_codex(home: Path, address: str) -> Mapping[str, str]:
    (home / ".codex").mkdir(exist_ok=True)
    text = CODEX_CONFIG.format(address=address)
    (home / ".codex" / "config.toml").write_text(text, encoding="utf-8")
    return {}


def set_up_claude(home: Path, address: str) -> Mapping[str, str]:
    return {
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": "tiny",
    }


AGENTS = {
    "codex": Agent(
        "@openai/codex@0.171.0",
        (
            "codex",
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            FIRST_TURN_PROMPT,
        ),
        Play("exec_command", {"cmd": "echo hi"}),
        set_up_codex,
    ),
    "claude": Agent(
        "@anthropic-ai/claude-code@2.1.197",
        ("claude", "-p", FIRST_TURN_PROMPT, "--allowedTools", "Bash"),
        Play("Bash", {"command": "echo hi", "description": "says hi"}),
        set_up_claude,
    ),
}


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
