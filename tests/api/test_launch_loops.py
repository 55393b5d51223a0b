"""`rvllm launch` over forty calls, a server that is stopped in the middle, an overflow.

Nothing here plays: `launch` starts the server, it runs a real model of one layer that
calls the agent's own tool, and its cache on disk outlives it. It takes minutes of
processor time, so it runs where RVLLM_LONG_AGENTS=1 asks for it. Agents come from the
package registry at pinned versions; where it cannot be reached, they are skipped.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from rvllm_local.commands.launch.agents import load_agents
from tests.api.test_launch_agents import JOBS, processes_with
from tests.support.agent_engine import COMMAND, DONE, SUMMARY
from tests.support.agent_sessions import sessions_of
from tests.support.npm import Packages
from tests.support.processes import eventually
from tests.support.rigged_model import FLOOD, Script, save_rigged

pytestmark = pytest.mark.skipif(
    os.environ.get("RVLLM_LONG_AGENTS") != "1",
    reason="minutes for each agent; RVLLM_LONG_AGENTS=1 runs them",
)
NUM_CALLS = 40
RESTART = 20  # the call during which the server is stopped
NUM_FLOODS = 12  # at most, after these; the agent compacts the session before
CONTEXTS = {"claude": 57_344}
CONTEXT = 40_960
TIMEOUT_S = 900
# opencode goes on after its compaction, and still says that it failed.
FAILURES = {"opencode": 1}
# pi compacts, and where it only prints it ends with that and says nothing.
END_COMPACTED = {"pi"}
AGENTS = load_agents()

# `rvllm` with another default port, so that it meets no server of the machine.
PROGRAM = """\
import sys
from rvllm_local.tui import launcher
launcher.DEFAULT_PORT = int(sys.argv.pop(1))
from rvllm_local.cli import main
sys.exit(main(sys.argv[1:]))
"""
# What the agent's shell runs at each call. It keeps the server's counters of that moment.
TOOL = """\
import json, pathlib, subprocess, sys, time, urllib.request
number, port, restart, prefix = int(sys.argv[1]), {port}, {restart}, {prefix!r}
folder = pathlib.Path({folder!r})
def read():
    for _ in range(1200):
        try:
            url = f"http://127.0.0.1:{{port}}/metrics"
            return urllib.request.urlopen(url, timeout=60).read()
        except OSError:
            time.sleep(0.1)
(folder / f"metrics-{{number:02}}").write_bytes(read())
if number == restart:
    command = [{python!r}, "-m", "rvllm_local.cli", "stop", "--port", str(port)]
    stopped = subprocess.run(command, capture_output=True, text=True)
    (folder / "stopped").write_text(f"{{stopped.returncode}} {{stopped.stdout}}")
    (folder / "metrics-again").write_bytes(read())
if number >= {num_calls}:
    for line in range(1, 1501):
        print(f"{{prefix}} {{number - {num_calls}}} {{line:09}}")
else:
    print("hi", number)
"""


@dataclass(frozen=True)
class Counts:
    """Prompt tokens that a server has counted."""

    prompt: int
    cached: int

    @classmethod
    def read(cls, text: str) -> Counts:
        kinds = {"prompt": 0, "cached": 0}
        for line in text.splitlines():
            match = re.match(r'rvllm_tokens_total{.*kind="(\w+)".*} (\S+)', line)
            if match and match[1] in kinds:
                kinds[match[1]] += int(float(match[2]))
        return cls(**kinds)

    def since(self, before: Counts) -> Counts:
        return Counts(self.prompt - before.prompt, self.cached - before.cached)


@dataclass(frozen=True)
class Session:
    """What came of one session."""

    text: str
    code: int
    has_compacted: bool  # the agent has kept the summary that it was given
    turns: list[Counts]  # prompts between two calls of the tool
    restarted: Counts  # of the first turn of the second server
    stopped: str
    statuses: set[str]
    configuration: str
    profile: list[str]
    port: int


def arguments_of(name: str, program: Path) -> Sequence[dict[str, object]]:
    """The arguments of each call: another command each time."""
    calls = []
    for number in range(NUM_CALLS + NUM_FLOODS):
        arguments = dict(JOBS[name].play.arguments)
        for key, value in arguments.items():
            if value == COMMAND:
                arguments[key] = f"{program} {number}"
        if name == "qwen":  # in the order of its schema, which the grammar asks for
            arguments["description"] = arguments.pop("description")
        if name == "codex":
            arguments["yield_time_ms"] = 30_000
        calls.append(arguments)
    return calls


def write_tool(folder: Path, port: int) -> Path:
    """A program for the agent's shell. Returns its path."""
    path = folder / "tool"
    text = TOOL.format(
        port=port,
        restart=RESTART,
        prefix=FLOOD.split()[0],
        folder=str(folder),
        python=sys.executable,
        num_calls=NUM_CALLS,
    )
    path.write_text(f"#!{sys.executable} -S\n{text}")
    path.chmod(0o755)
    return path


def run_session(name: str, packages: Packages, home: Path) -> Session:
    """Launch the agent, and let `launch` start the server."""
    binaries = packages.folder(AGENTS[name].package) / "node_modules" / ".bin"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    counters = home / "counters"
    counters.mkdir()
    tool = write_tool(counters, port)
    script = Script(JOBS[name].play.tool, arguments_of(name, tool))
    context = CONTEXTS.get(name, CONTEXT)
    model = save_rigged(home / "rigged", script, context)
    own_file = home / JOBS[name].configuration
    own_file.parent.mkdir(parents=True)
    own_file.write_text("{}")
    work = home / "work"
    work.mkdir()
    environ = {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(home),
        "TERM": "dumb",
        "RVLLM_MARK": str(home),
        "RVLLM_CACHE": "disk",
        "RVLLM_KV_MEMORY": "64MB",
    }
    launch = [sys.executable, "-c", PROGRAM, str(port), "launch", "--force", name]
    done = subprocess.run(
        [*launch, str(model), "--", *JOBS[name].arguments],
        cwd=work,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    eventually(lambda: not processes_with(f"RVLLM_MARK={home}"), 60)
    return read_session(home, port, done, own_file)


def read_session(
    home: Path, port: int, done: subprocess.CompletedProcess[str], own_file: Path
) -> Session:
    counters = home / "counters"
    texts = []
    for path in sorted(counters.glob("metrics-[0-9]*")):
        texts.append(path.read_text())
    assert (counters / "metrics-again").exists(), done.stdout[-3000:]
    again = (counters / "metrics-again").read_text()
    counts = [Counts.read(text) for text in texts]
    turns = []
    for number, (before, after) in enumerate(itertools.pairwise(counts)):
        if number == RESTART:
            before = Counts(0, 0)
        turns.append(after.since(before))
    profile = home / ".local/share/rvllm/launch"
    return Session(
        text=done.stdout,
        code=done.returncode,
        has_compacted=has_kept(profile.parent.parent, SUMMARY),
        turns=turns,
        restarted=turns[RESTART],
        stopped=(counters / "stopped").read_text(),
        statuses=statuses_in(texts) | statuses_in([again]),
        configuration=own_file.read_text(),
        profile=[path.name for path in profile.iterdir()],
        port=port,
    )


def has_kept(folder: Path, text: str) -> bool:
    """Whether a file below a folder has a text in it."""
    for path in folder.rglob("*"):
        if path.is_file() and text.encode() in path.read_bytes():
            return True
    return False


def statuses_in(texts: Sequence[str]) -> set[str]:
    """The statuses of all answers that were counted."""
    statuses = set()
    for text in texts:
        for line in text.splitlines():
            if line.startswith("rvllm_http_responses_total"):
                statuses.add(line.split('"')[1])
    return statuses


@pytest.fixture(scope="module")
def sessions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Session]]]:
    """The sessions of the agents that were selected, which run in the background."""
    with sessions_of(request, tmp_path_factory, run_session) as futures:
        yield futures


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", JOBS)
def test_forty_calls_a_restart_and_an_overflow(
    name: str, sessions: dict[str, Future[Session]]
) -> None:
    session = sessions[name].result()
    report = {
        "turns": [(turn.prompt, turn.cached) for turn in session.turns],
        "statuses": sorted(session.statuses),
        "code": session.code,
        "text": session.text[-300:],
    }
    print(name, json.dumps(report))
    assert session.has_compacted
    if name not in END_COMPACTED:
        # It is said only to one whose prompt holds the summary that it was given.
        assert DONE in session.text, session.text[-2000:]
    assert session.code == FAILURES.get(name, 0)
    assert session.stopped.startswith("0 stopped the server"), session.stopped
    # 503 is what its keeper hears while the server loads; an overflow may be a 400.
    assert session.statuses <= {"200", "400", "503"}
    assert session.configuration == "{}"
    assert session.profile == [name]
    assert len(session.turns) >= NUM_CALLS
    loop = session.turns[: NUM_CALLS - 1]
    assert sum(turn.cached for turn in loop) >= 0.95 * sum(t.prompt for t in loop)
    assert session.restarted.cached >= 0.95 * session.restarted.prompt
