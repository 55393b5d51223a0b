"""The command as a user meets it: its messages on one line, its exit statuses, and pipes that close."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_local import __version__, cli, errors
from rvllm_local.commands.arguments import no_arguments
from rvllm_local.commands.verbs import VERBS, Verb

COMMAND = [sys.executable, "-m", "rvllm_local.cli"]


def rvllm(
    *arguments: str, stdin: bytes = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "smolm2-135m", "hi"], "did you mean smollm2-135m"),
        (["run", "smollm2-135m", ""], "the prompt is empty"),
        (["run", "smollm2-135m"], "the prompt is empty"),
        (["run", "smollm2-135m", "hi", "--kv-memory", "12Q"], "'12Q' is not a size"),
        (["run", "smollm2-135m", "hi", "--kv-memory", "9" * 400], "bytes"),
        (["run", "smollm2-135m", "hi", "--temperature", "nan"], "temperature"),
        (["run", "smollm2-135m", "hi", "--max-tokens", "0"], "max_tokens"),
        (
            ["run", "smollm2-135m", "hi", "--attention", "flash"],
            "auto, reference or kernels",
        ),
        (["pull", "nothing-like-it"], "no model called"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], told: str) -> None:
    done = rvllm(*arguments)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(lines) == 1
    assert lines[0].startswith("rvllm: error: ")
    assert told in lines[0]


def test_a_prompt_that_is_no_text_is_refused() -> None:
    done = rvllm("run", "smollm2-135m", stdin=b"\xff\xfe hello")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"not UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.EngineError("broke"), 1),
        (errors.DownloadError("no network"), 1),
        (OSError(28, "No space left on device"), 1),
        (errors.ModelFileError("truncated"), 2),
        (errors.MemoryBudgetError("too small"), 2),
        (errors.ConfigError("bad"), 2),
    ],
)
def test_statuses(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_arguments: object) -> int:
        raise error

    monkeypatch.setitem(VERBS, "ls", Verb("", no_arguments, fail))
    assert cli.main(["ls"]) == status
    assert capsys.readouterr().err == f"rvllm: error: {error}\n"


def test_the_version_is_told() -> None:
    assert rvllm("--version").stdout.decode() == f"rvllm {__version__}\n"


def test_config_shows_what_was_merged(tmp_path: Path) -> None:
    done = rvllm("config", RVLLM_MAX_ROWS="3", RVLLM_CACHE_DIR=str(tmp_path))
    assert "max_rows = 3" in done.stdout.decode().splitlines()
    assert f"cache_dir = {tmp_path}" in done.stdout.decode().splitlines()


def test_the_configured_cache_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'cache_dir = "{tmp_path}"')
    environ = {
        name: value for name, value in os.environ.items() if name != "RVLLM_CACHE_DIR"
    }
    environ["RVLLM_CONFIG"] = str(tmp_path / "config.toml")
    done = subprocess.run(
        [*COMMAND, "ls"], capture_output=True, check=True, env=environ
    )
    assert b"not fetched" in done.stdout


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "ls"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize(
    ("words", "status"), [("ls --installed", 0), ("run smollm2-135m", 2)]
)
def test_a_closed_standard_stream_does_no_harm(
    words: str, status: int, stream: str
) -> None:
    script = f"exec {shlex.join(COMMAND)} {words} {stream}"
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == status
    assert b"Traceback" not in done.stderr


def test_run_streams_an_answer_and_its_figures(smollm2: Path) -> None:
    done = rvllm(
        "run",
        str(smollm2),
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        stdin=b"The capital of France?",
    )
    answer, figures = done.stdout.decode().rsplit("\n\n", 1)
    assert done.returncode == 0
    assert answer.strip()
    for part in ("TTFT", "tokens/s", "KV blocks", "attention"):
        assert part in figures


def test_a_terminal_without_unicode_gets_a_replacement(smollm2: Path) -> None:
    done = rvllm(
        "run",
        str(smollm2),
        "Repeat: café 😀",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        PYTHONIOENCODING="ascii",
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


AT_AN_IMPORT = """
import sys
from rvllm_local import cli

class Telling:
    def find_spec(name, path, target=None):
        if name == sys.argv[1]:
            print("here", flush=True)

sys.meta_path.insert(0, Telling)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "moment", ["rvllm_local.commands.run", "mlx.core", "mlx_lm.models.llama", ""]
)
def test_interrupting_ends_with_130(smollm2: Path, moment: str) -> None:
    """While modules are imported, while the model loads, and once text has come."""
    told_when = [sys.executable, "-c", AT_AN_IMPORT, moment]
    command = told_when if moment else COMMAND
    run = ["run", str(smollm2), "Tell a long story", "--max-tokens", "2000"]
    with subprocess.Popen(
        [*command, *run], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.strip() == b""


def test_an_interrupt_that_a_library_swallows_ends_the_process_all_the_same() -> None:
    code = (
        "import sys, time\n"
        "from rvllm_local import cli\n"
        "from rvllm_local.commands import run\n"
        "def swallowing(arguments):\n"
        "    print('here', flush=True)\n"
        "    try: time.sleep(20)\n"
        "    except BaseException: time.sleep(20)\n"
        "    return 0\n"
        "run.run = swallowing\n"
        "sys.exit(cli.main(['run', 'any', 'prompt']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130


def test_an_interrupt_in_a_callback_ends_the_process_without_a_word() -> None:
    code = (
        "import signal, sys, weakref\n"
        "from rvllm_local import cli\n"
        "from rvllm_local.commands import run\n"
        "class Thing: pass\n"
        "def swallowing(arguments):\n"
        "    thing = Thing()\n"
        "    callback = lambda _: signal.raise_signal(signal.SIGINT)\n"
        "    kept = weakref.ref(thing, callback)\n"
        "    del thing\n"
        "    return 0\n"
        "run.run = swallowing\n"
        "sys.exit(cli.main(['run', 'any', 'prompt']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr.strip()) == (130, b"")


def test_doctor_says_what_it_found_and_what_to_do() -> None:
    done = rvllm("doctor", "--kernels", "--json")
    found = json.loads(done.stdout)
    states = {finding["check"]: finding["state"] for finding in found["findings"]}
    assert set(states) >= {
        "machine",
        "versions",
        "BLAS",
        "memory",
        "disk",
        "attention",
        "kernels",
    }
    assert set(states.values()) <= {"ok", "warning", "failed"}
    assert all(
        finding["advice"] for finding in found["findings"] if finding["state"] != "ok"
    )
    assert done.returncode == ("failed" in states.values())
    text = rvllm("doctor")
    assert b"machine" in text.stdout and b"attention" in text.stdout
