"""`rvllm service` and `rvllm stop`: valid definitions, the commands given, and ends."""

from __future__ import annotations

import argparse
import logging
import plistlib
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.cli import main
from rvllm_local.commands.service.definition import (
    Service,
    launchd_plist,
    systemd_unit,
)
from rvllm_local.commands.service.managers import Command, manager_of
from rvllm_local.commands.service.service import (
    Ran,
    ServiceControl,
    run_command,
    service_of,
)
from rvllm_local.commands.verbs import parse
from rvllm_local.errors import ConfigError, EngineError
from rvllm_local.server.process_limits import prepare_logs
from rvllm_local.server.running_servers import running_servers
from tests.support.processes import eventually

ODD = 'a "b" \\c %h $HOME é'  # that a definition must spell in its own way
SERVICE = Service(
    [sys.executable, "-m", "rvllm_local.cli", "serve", ODD, "--port", "9000"],
    drain_s=30,
    errors=Path("/tmp/errors.log"),
    environment={"RVLLM_CACHE_DIR": ODD},
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("RVLLM_API_KEY", "a-secret-key")
    return tmp_path


class TestDefinitions:
    def test_a_property_list_has_launchds_keys(self) -> None:
        row = plistlib.loads(launchd_plist(SERVICE))
        assert row["ProgramArguments"] == SERVICE.command
        assert row["EnvironmentVariables"] == {"RVLLM_CACHE_DIR": ODD}
        assert row["KeepAlive"] == {"SuccessfulExit": False}
        assert row["RunAtLoad"] is True
        assert row["ExitTimeOut"] > 30
        assert row["HardResourceLimits"] == {"Core": 0}

    def test_a_unit_is_valid(self, tmp_path: Path) -> None:
        path = tmp_path / "rvllm.service"
        path.write_bytes(systemd_unit(SERVICE))
        if shutil.which("systemd-analyze") is None:
            pytest.skip("there is no systemd-analyze here")
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        # An older systemd does not know how to make pauses longer.
        lines = [line for line in done.stderr.splitlines() if str(path) in line]
        unknown = ("RestartSteps", "RestartMaxDelaySec")
        assert not [line for line in lines if not any(word in line for word in unknown)]

    def test_a_unit_spells_words_so_that_they_come_back(self) -> None:
        text = systemd_unit(SERVICE).decode()
        (command,) = [row for row in text.splitlines() if row.startswith("ExecStart=")]
        assert '"a \\"b\\" \\\\c %%h $$HOME é"' in command
        assert 'Environment="RVLLM_CACHE_DIR=a \\"b\\" \\\\c %%h $HOME é"' in text

    @pytest.mark.parametrize("define", [launchd_plist, systemd_unit])
    def test_a_line_cannot_be_smuggled_in(self, define: Any) -> None:
        made = Service(["rvllm", "a\nExecStartPre=/bin/x"], 1, Path("/dev/null"))
        with pytest.raises(ConfigError, match="control character"):
            define(made)

    def test_other_systems_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="macOS and on Linux with systemd"):
            manager_of("win32")


class TestWords:
    def test_paths_are_absolute_and_the_key_is_left_out(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(home)
        monkeypatch.setenv("RVLLM_MAX_ROWS", "4")
        (home / "models").mkdir()
        (home / "models" / "m").mkdir()
        made = service_of(["models/m", "default", "--port", "9000"], None)
        assert made.command[3:] == [
            "serve",
            str(home / "models" / "m"),
            "default",
            "--port",
            "9000",
        ]
        assert made.environment["RVLLM_MAX_ROWS"] == "4"
        assert "RVLLM_API_KEY" not in made.environment

    def test_what_the_server_refuses_is_refused_now(self, home: Path) -> None:
        with pytest.raises(ConfigError, match="lets others reach this server"):
            service_of(["m", "--host", "0.0.0.0"], None)


class Recorder:
    """Runs no command, and remembers all. Each gives `result`."""

    def __init__(self, result: Ran = (0, "")) -> None:
        self.result = result
        self.commands: list[Command] = []

    def __call__(self, command: Command) -> Ran:
        self.commands.append(command)
        return self.result


def act(platform: str, run: Recorder, *words: str) -> int:
    control = ServiceControl(manager_of(platform), run)
    return control.act(parse(["service", *words]))


class TestActions:
    @pytest.mark.parametrize("platform", ["darwin", "linux"])
    def test_from_install_to_uninstall(
        self, home: Path, platform: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, path = Recorder(), manager_of(platform).path
        assert act(platform, run, "status") == 1
        assert act(platform, run, "install", "m", "--", "--ollama-port") == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"--ollama-port" in path.read_bytes()
        assert b"a-secret-key" not in path.read_bytes()
        assert run.commands == list(manager_of(platform).begin)
        run.result = (0, manager_of(platform).running_word)
        assert act(platform, run, "status") == 0
        assert act(platform, run, "logs") == 0
        assert act(platform, run, "uninstall") == 0
        assert not path.exists()
        assert act(platform, run, "uninstall") == 0
        assert "no service is installed" in capsys.readouterr().out

    def test_a_manager_that_fails_is_quoted(self, home: Path) -> None:
        run = Recorder((1, "Failed to connect to bus"))
        with pytest.raises(EngineError, match=r"Failed to connect to bus\. To try"):
            act("linux", run, "install")
        assert manager_of("linux").path.exists()

    def test_a_machine_without_the_manager_says_so(self) -> None:
        with pytest.raises(ConfigError, match="is not on this machine"):
            run_command(["no-such-manager"])


def test_a_log_file_is_private_and_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "logs" / "serve.log"
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr("rvllm_local.server.process_limits._LOG_BYTES", 200)
    prepare_logs(path)
    for number in range(80):
        logging.getLogger("rvllm").warning("line %d", number)
    for handler in root.handlers:
        handler.close()
    assert "line 79" in path.read_text()
    assert len(list(path.parent.iterdir())) == 5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


SERVER = """
import signal, sys
from rvllm_local.server.running_servers import announce
note = announce("127.0.0.1", int(sys.argv[1]))
ends = signal.sigwait({signal.SIGTERM})
if sys.argv[2] == "slow":
    signal.sigwait({signal.SIGTERM})
"""


class TestStop:
    @pytest.fixture
    def start(self, home: Path) -> Iterator[Any]:
        """Starts programs that say that they serve, and end as servers do."""
        processes: list[subprocess.Popen[bytes]] = []

        def start(port: int, kind: str = "quick") -> subprocess.Popen[bytes]:
            block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15])"
            command = [sys.executable, "-c", f"{block}\n{SERVER}", str(port), kind]
            process = subprocess.Popen(command)
            processes.append(process)
            pids = {process.pid}
            eventually(lambda: pids <= {row.pid for row in running_servers()}, 60)
            return process

        yield start
        for process in processes:
            process.kill()
            process.wait()

    def test_the_one_that_runs_is_stopped(
        self, start: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        process = start(4711)
        assert main(["stop"]) == 0
        assert process.wait(60) == 0
        assert "stopped the server at 127.0.0.1:4711" in capsys.readouterr().out
        assert main(["stop"]) == 1

    def test_several_must_be_told_apart(self, start: Any) -> None:
        first, second = start(4711), start(4712)
        assert main(["stop"]) == 2
        assert main(["stop", "--port", "4713"]) == 2
        assert main(["stop", "--port", "4712"]) == 0
        assert second.wait(60) == 0 and first.poll() is None
        assert main(["stop", "--all"]) == 0

    def test_one_that_drains_can_be_cut_off(self, start: Any) -> None:
        process = start(4711, "slow")
        assert main(["stop", "--now"]) == 0
        assert process.wait(60) == 0

    def test_one_that_was_killed_is_not_listed(self, start: Any) -> None:
        process = start(4711)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert running_servers() == []


def test_the_verbs_are_there() -> None:
    assert isinstance(parse(["service", "status"]), argparse.Namespace)
    with pytest.raises(SystemExit):
        parse(["service", "restart"])
