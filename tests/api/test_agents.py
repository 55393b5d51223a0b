"""Coding agents run a tool loop against a server with default flags, set up as documented.

They come from the package registry at pinned versions; where it cannot be reached, or
there is no Node, these tests are skipped. The engine plays a model that calls the
agent's own tool. All agents run side by side, since most of the time they wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.agent_engine import (
    COMMAND,
    DONE,
    AgentEngine,
    OverflowingEngine,
    Play,
    common_prefix,
)
from tests.support.api import PacedClient, Running, served
from tests.support.npm import Packages

CONTEXT = 1_000_000  # the tiny vocabulary needs a token for nearly every letter
WINDOW = "131072"  # as in the files that the documentation shows
AT_ONCE = 4  # sessions that run side by side
PATIENCE_S = (
    800  # for a session; on a busy machine an agent's start alone takes minutes
)
QUESTION = "say hi three times"
ADDRESS = "http://127.0.0.1:8473"  # as in the files that the documentation shows
FILES = Path(__file__).parent / "agents"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "api.md"


@dataclass(frozen=True)
class Agent:
    """One agent: its package, its command, and the tool of its own that is called.

    `file` is its set-up, which goes to `target` in an empty home; one without a target
    holds variables. `context` is a length that a session with much output overflows.
    With `knows_window`, the set-up tells it, and the agent compacts before it overflows.
    """

    package: str
    command: tuple[str, ...]
    play: Play
    file: str
    target: str | None = None
    context: int = 100_000
    knows_window: bool = False
    fails_after_overflow: bool = False  # it goes on, and still says that it failed

    def set_up(self, home: Path, address: str) -> dict[str, str]:
        """Write the set-up, or return its variables."""
        text = (FILES / self.file).read_text(encoding="utf-8")
        text = text.replace(ADDRESS, address)
        if self.knows_window:
            text = text.replace(WINDOW, str(self.context))
        if self.target is None:
            lines = [line.removeprefix("export ") for line in text.splitlines()]
            return dict(line.split("=", 1) for line in lines)
        path = home / self.target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return {}


SHELL = {"command": COMMAND, "description": "says hi"}
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
        Play("exec_command", {"cmd": COMMAND}),
        "codex.toml",
        ".codex/config.toml",
        context=50_000,
        knows_window=True,
    ),
    "claude": Agent(
        "@anthropic-ai/claude-code@2.1.197",
        ("claude", "-p", QUESTION, "--allowedTools", "Bash"),
        Play("Bash", SHELL),
        "claude.sh",
        context=150_000,
    ),
    "opencode": Agent(
        "opencode-ai@1.18.33",
        ("opencode", "run", QUESTION),
        Play("bash", SHELL),
        "opencode.json",
        ".config/opencode/opencode.json",
        fails_after_overflow=True,
    ),
    "pi": Agent(
        "@mariozechner/pi-coding-agent@0.73.1",
        ("pi", "-p", "--provider", "rvllm", "--model", "default", QUESTION),
        Play("bash", {"command": COMMAND}),
        "pi.json",
        ".pi/agent/models.json",
    ),
    "qwen": Agent(
        "@qwen-code/qwen-code@0.24.4",
        ("qwen", "--auth-type", "openai", "--yolo", "-p", QUESTION),
        Play("run_shell_command", {**SHELL, "is_background": False}),
        "qwen.sh",
        context=130_000,
    ),
}


def open_source_codex(provider: str) -> Agent:
    """Codex as it asks what it takes for Ollama, or for LM Studio."""
    choices = ("--oss", "--local-provider", provider, "-m", "tiny")
    command = AGENTS["codex"].command
    return replace(
        AGENTS["codex"],
        command=(*command[:2], *choices, *command[2:]),
        file="codex-oss.sh",
        target=None,
    )


# Agents that run where RVLLM_MORE_AGENTS=1 asks for them: each takes a minute.
MORE_AGENTS = {
    "continue": Agent(
        "@continuedev/cli@1.5.47",
        ("cn", "--auto", "-p", QUESTION),
        Play("Bash", {"command": COMMAND}),
        "continue.yaml",
        ".continue/config.yaml",
    ),
    "cline": Agent(
        "cline@3.0.65",
        ("cline", "-P", "openai-compatible", "-m", "default", QUESTION),
        Play("run_commands", {"commands": [COMMAND]}),
        "cline.json",
        ".cline/data/settings/providers.json",
    ),
}
for provider in ("ollama", "lmstudio"):
    MORE_AGENTS[f"codex-{provider}"] = open_source_codex(provider)
KNOWN = {**AGENTS, **MORE_AGENTS}
HAS_MORE = os.environ.get("RVLLM_MORE_AGENTS") == "1"
LOOPS = KNOWN if HAS_MORE else AGENTS
# One that knows the window, one that is told by a refusal, one that fails after all.
OVERFLOWS = AGENTS if HAS_MORE else ("codex", "claude", "opencode")
# One of each of the three APIs that agents speak.
INTERRUPTED = AGENTS if HAS_MORE else ("codex", "claude", "pi")


@pytest.mark.parametrize("name", KNOWN)
def test_the_documentation_shows_what_runs(name: str) -> None:
    agent, text = KNOWN[name], DOCUMENTATION.read_text(encoding="utf-8")
    assert (FILES / agent.file).read_text(encoding="utf-8").strip() in text
    version = agent.package.rpartition("@")[2]
    assert version in text


@contextmanager
def playing(tiny: Path, engine: Any) -> Iterator[Running]:
    """A server with default flags over an engine that plays."""
    with served({"tiny": tiny}, opener=lambda files, options: engine) as running:
        yield running


@dataclass(frozen=True)
class Stage:
    """Where an agent runs: its commands, an empty home, and the model of the server."""

    agent: Agent
    packages: Packages
    home: Path
    tiny: Path

    def start(self, address: str) -> subprocess.Popen[str]:
        """Start a session of the agent, with a group of processes of its own."""
        folder = self.packages.folder(self.agent.package)
        binaries = folder / "node_modules" / ".bin"
        work = self.home / "work"
        work.mkdir(parents=True, exist_ok=True)
        environ = {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "TERM": "dumb",
            **self.agent.set_up(self.home, address),
        }
        return subprocess.Popen(
            [str(binaries / self.agent.command[0]), *self.agent.command[1:]],
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, address: str) -> tuple[str, int]:
        """What the agent prints in one session, and its exit status."""
        with self.start(address) as process:
            try:
                text, _ = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            return text, process.returncode

    def engine(self, kind: type[AgentEngine], context: int) -> AgentEngine:
        tokenizer = read_tokenizer(ModelFiles("folder", self.tiny, "tiny"))
        return kind(tokenizer, self.agent.play, context)


@dataclass(frozen=True)
class Session:
    """What came of one or more sessions."""

    engine: Any
    texts: list[str]
    statuses: dict[str, int]  # answers of the server by HTTP status
    code: int = 0


def statuses(running: Running) -> dict[str, int]:
    """How many answers the server gave, by HTTP status."""
    counts = {}
    for line in running.client.get("/metrics").text.splitlines():
        if line.startswith("rvllm_http_responses_total"):
            counts[line.split('"')[1]] = int(float(line.split()[-1]))
    return counts


def two_sessions(stage: Stage) -> Session:
    """Two sessions of three calls each, one after the other."""
    engine = stage.engine(AgentEngine, CONTEXT)
    with playing(stage.tiny, engine) as running:
        address = f"http://127.0.0.1:{running.port}"
        texts = [stage.run(address)[0] for _ in range(2)]
        return Session(engine, texts, statuses(running))


def overflow(stage: Stage) -> Session:
    """A session whose tool prints more than the context holds."""
    engine = stage.engine(OverflowingEngine, stage.agent.context)
    with playing(stage.tiny, engine) as running:
        text, code = stage.run(f"http://127.0.0.1:{running.port}")
        return Session(engine, [text], statuses(running), code)


def interrupt(stage: Stage) -> Session:
    """A session that gets Ctrl-C while the model speaks."""
    engine = PacedClient()
    with playing(stage.tiny, engine) as running:
        with stage.start(f"http://127.0.0.1:{running.port}") as process:
            try:
                running.eventually(lambda: process.poll() or engine.open, PATIENCE_S)
                os.killpg(process.pid, signal.SIGINT)
                text, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        running.eventually(lambda: not engine.open, PATIENCE_S)
        return Session(engine, [text], statuses(running))


JOBS: dict[str, Callable[[Stage], Session]] = {
    "sessions": two_sessions,
    "overflow": overflow,
    "interrupt": interrupt,
}
SELECTED = {"sessions": LOOPS, "overflow": OVERFLOWS, "interrupt": INTERRUPTED}
Outcomes = dict[tuple[str, str], Future[Session]]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Outcomes]:
    """The sessions of all agents that were selected, which run in the background."""
    packages, pool = Packages(), ThreadPoolExecutor(AT_ONCE)
    futures: Outcomes = {}
    for item in request.session.items:
        if item.path != Path(__file__) or "outcomes" not in item.fixturenames:
            continue
        name = item.callspec.params["name"]
        packages.begin(KNOWN[name].package)
        for job, work in JOBS.items():
            if name not in SELECTED[job] or (name, job) in futures:
                continue
            home = tmp_path_factory.mktemp(f"{name}-{job}")
            stage = Stage(KNOWN[name], packages, home, tiny)
            futures[name, job] = pool.submit(work, stage)
    yield futures
    pool.shutdown(cancel_futures=True)
    packages.close()
    end_helpers(tmp_path_factory.getbasetemp())


def end_helpers(folder: Path) -> None:
    """End what agents left running, such as Cline's hub, where a process shows its home."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"HOME={folder}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.parametrize("name", LOOPS)
def test_two_sessions_with_a_tool_loop_each(name: str, outcomes: Outcomes) -> None:
    session = outcomes[name, "sessions"].result()
    for text in session.texts:
        assert DONE in text
    assert set(session.statuses) == {"200"}
    check_prefixes(session.engine.prompts)


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_ends_in_the_agents_own_compaction(
    name: str, outcomes: Outcomes
) -> None:
    agent, session = AGENTS[name], outcomes[name, "overflow"].result()
    assert session.engine.num_summaries == 1
    assert session.engine.has_gone_on
    assert (session.code != 0) == agent.fails_after_overflow
    assert set(session.statuses) <= {"200", "400"}
    if agent.knows_window:
        assert "400" not in session.statuses
    else:
        assert session.statuses["400"] in (1, 2)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_ends_the_request(name: str, outcomes: Outcomes) -> None:
    session = outcomes[name, "interrupt"].result()
    assert session.engine.open == {}
    assert set(session.statuses) <= {"200"}


def check_prefixes(prompts: list[tuple[int, ...]]) -> None:
    """At least 95 % of every later turn, and of a second session, was there before."""
    longest = max(map(len, prompts))
    turns = [index for index, row in enumerate(prompts) if len(row) > longest // 2]
    assert len(turns) == 8, "two sessions of three calls and an answer each"
    for index in turns[1:]:
        prompt = prompts[index]
        shared = max(common_prefix(prompt, other) for other in prompts[:index])
        assert shared >= 0.95 * len(prompt)
