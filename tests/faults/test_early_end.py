"""A signal at the very start ends cleanly; what was killed leaves nothing for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rvllm_local.early_signals import verb_of
from rvllm_local.scratch import temporary_folder

# Sends a signal to its own process when a module is about to be imported.
HOOK = """
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("verb", "name", "module", "status"),
    [
        ("serve", "SIGTERM", "rvllm_local.host", 0),
        ("serve", "SIGINT", "rvllm_local.host", 0),
        ("serve", "SIGTERM", "rvllm_local.commands.serve", 0),
        ("serve", "SIGTERM", "rvllm_local.server.listener", 0),
        ("run", "SIGINT", "rvllm_local.host", 130),
        ("run", "SIGINT", "rvllm_local.llm", 130),
        ("plan", "SIGINT", "rvllm_local.commands.verbs", 130),
        ("plan", "SIGINT", "rvllm_local.commands.plan", 130),
    ],
)
def test_a_signal_while_modules_are_imported(
    tmp_path: Path, verb: str, name: str, module: str, status: int
) -> None:
    hook = HOOK.format(module=module, name=name)
    (tmp_path / "sitecustomize.py").write_text(hook, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    more = {"run": ["m", "x"], "plan": ["m"], "serve": ["m"]}[verb]
    done = subprocess.run(
        [sys.executable, "-m", "rvllm_local.cli", verb, *more],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr


def test_an_ignored_interrupt_stays_ignored() -> None:
    command = "import signal, rvllm_local; print(signal.getsignal(signal.SIGINT).name)"
    done = subprocess.run(
        [sys.executable, "-c", command],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "SIG_IGN"


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (["python", "/home/me/bin/rvllm", "serve", "m"], "serve"),
        (["python", "-P", "-m", "rvllm_local.cli", "run"], "run"),
        (["python", "/home/me/bin/rvllm"], ""),
        (["python", "-P", "-m", "rvllm_local.clients.process.child", "5"], None),
        (["python", "my_script.py", "serve"], None),
    ],
)
def test_the_verb_of_a_process(words: list[str], verb: str | None) -> None:
    assert verb_of(words) == verb


def test_folders_of_killed_processes_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, tempfile\n"
            "from rvllm_local.scratch import temporary_folder\n"
            "folder = temporary_folder(); print(folder.name, flush=True)\n"
            "os.kill(os.getpid(), 9)",
        ],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    left = Path(killed.stdout.strip())
    mine = tmp_path / f"rvllm-scratch-{os.getpid()}-x"
    others = tmp_path / "rvllm-scratch-notes"
    mine.mkdir()
    others.mkdir()
    assert left.is_dir()
    with temporary_folder() as folder:
        assert not left.exists()
        assert Path(folder).is_dir()
        assert mine.is_dir()
        assert others.is_dir()
    assert not Path(folder).exists()
