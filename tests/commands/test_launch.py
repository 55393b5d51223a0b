"""`rvllm launch`: agents as data, a private profile, and words for what is missing."""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.cli import main
from rvllm_local.commands.launch.agents import OTHER, Settings, load_agents
from rvllm_local.commands.launch.launch import launch
from rvllm_local.commands.launch.server import Progress
from rvllm_local.commands.verbs import parse
from rvllm_local.errors import ConfigError, ModelNotFoundError, ParameterError
from rvllm_local.tui import launcher
from tests.support.api import PacedClient, Running, served
from tests.support.processes import eventually
from tests.support.served import save_thinking

AGENTS = load_agents()
SETTINGS = Settings("http://127.0.0.1:1", "tiny", 40_000, 'a"key', "/profile")
# Prints what it was started with into a file beside it, and ends with a status.
PROGRAM = '#!/bin/sh\n{ env; printf "%s\\n" "$@"; } > "$0.told"\nexit 3\n'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = save_thinking(tmp_path_factory.mktemp("tiny") / "tiny")
    with served({"tiny": folder}, opener=lambda files, options: PacedClient()) as api:
        api.post({"prompt": "x"}, "/tokenize")  # loaded: its context is known
        yield api


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no agents in the path but those that a test puts there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.delenv("RVLLM_API_KEY", raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path


def words(running: Running, *rest: str) -> list[str]:
    return ["launch", "--url", f"http://127.0.0.1:{running.port}", *rest]


class TestData:
    @pytest.mark.parametrize("name", AGENTS)
    def test_every_agent_is_filled_in(self, name: str) -> None:
        agent = AGENTS[name]
        texts = [*agent.command_with(SETTINGS)]
        texts += agent.environment_with(SETTINGS).values()
        texts += agent.files_with(SETTINGS).values()
        assert not [text for text in texts if "%" in text]
        assert any(SETTINGS.address in text for text in texts)
        if name != OTHER:
            assert agent.install and agent.package and agent.least_context > 0
            assert "/" not in agent.command[0]

    @pytest.mark.parametrize("name", AGENTS)
    def test_files_of_a_profile_are_sound(self, name: str) -> None:
        for file, text in AGENTS[name].files_with(SETTINGS).items():
            assert file.endswith(".json")
            assert json.loads(text)

    def test_a_setting_of_codex_is_toml(self) -> None:
        command = AGENTS["codex"].command_with(SETTINGS)
        for word in command[2::2]:
            assert tomllib.loads(word)


class TestRunning:
    def test_the_agent_gets_the_server_the_profile_and_its_own_arguments(
        self, running: Running, home: Path
    ) -> None:
        program = home / "bin" / "pi"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        assert main(words(running, "pi", "tiny", "--", "-p", "--print")) == 3
        told = (home / "bin" / "pi.told").read_text()
        assert told.endswith("--provider\nrvllm\n--model\ntiny\n-p\n--print\n")
        profile = home / "data" / "rvllm" / "launch" / "pi"
        assert f"PI_CODING_AGENT_DIR={profile}\n" in told
        models: Any = json.loads((profile / "models.json").read_text())
        provider = models["providers"]["rvllm"]
        assert provider["baseUrl"] == f"http://127.0.0.1:{running.port}/v1"
        assert provider["models"][0]["contextWindow"] == 100_000
        assert not (home / ".pi").exists()

    def test_what_is_there_already_in_a_profile_stays(
        self, running: Running, home: Path
    ) -> None:
        program = home / "bin" / "qwen"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        own_file = home / "data" / "rvllm" / "launch" / "qwen" / "settings.json"
        own_file.parent.mkdir(parents=True)
        own_file.write_text('{"theme": "mine"}')
        assert main(words(running, "qwen")) == 3
        assert own_file.read_text() == '{"theme": "mine"}'

    def test_a_configuration_that_an_agent_would_write_to_is_hidden_from_it(
        self, running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = home / "mine"
        monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
        (config / "opencode").mkdir(parents=True)
        (config / "git").mkdir()
        (config / "git" / "config").write_text("[user]")
        program = home / "bin" / "opencode"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        shown = home / "data" / "rvllm" / "launch" / "opencode" / "config"
        shown.mkdir(parents=True)
        (shown / "gone").symlink_to(config / "gone")
        for _ in range(2):
            assert main(words(running, "opencode")) == 3
        told = (home / "bin" / "opencode.told").read_text()
        assert f"XDG_CONFIG_HOME={shown}\n" in told
        assert [path.name for path in shown.iterdir()] == ["git"]
        assert (shown / "git" / "config").read_text() == "[user]"

    def test_an_agent_that_is_not_installed_says_how(
        self, running: Running, home: Path
    ) -> None:
        with pytest.raises(ParameterError, match="npm install -g @openai/codex"):
            launch(parse(words(running, "codex")))

    def test_an_unknown_agent_names_the_known_ones(
        self, running: Running, home: Path
    ) -> None:
        with pytest.raises(ParameterError, match=r"claude, codex.*--print nobody"):
            launch(parse(words(running, "nobody")))

    def test_an_unknown_model_says_how_to_fetch_it(
        self, running: Running, home: Path
    ) -> None:
        (home / "bin" / "pi").write_text(PROGRAM)
        (home / "bin" / "pi").chmod(0o755)
        with pytest.raises(ModelNotFoundError, match="rvllm pull other"):
            launch(parse(words(running, "pi", "other")))


class TestServer:
    def test_a_server_that_loads_is_told_of_once(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        progress = Progress()
        for seconds in range(3):
            progress(f"loading m · for {seconds} s")
        progress("m is ready")
        assert capsys.readouterr().err == "rvllm: loading m\nrvllm: m is ready\n"

    def test_a_server_that_was_started_for_the_agent_ends_with_it(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        monkeypatch.setattr(launcher, "DEFAULT_PORT", port)
        (home / "bin" / "pi").write_text(PROGRAM)
        (home / "bin" / "pi").chmod(0o755)
        folder = save_thinking(tmp_path / "tiny")
        assert main(["launch", "--force", "pi", str(folder)]) == 3
        told = (home / "bin" / "pi.told").read_text()
        assert "--model\ntiny\n" in told
        eventually(lambda: not answers(port), 60)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionError:
        return False
    return True


class TestContext:
    def test_a_context_that_is_too_small_is_refused_with_both_numbers(
        self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (home / "bin" / "pi").write_text(PROGRAM)
        (home / "bin" / "pi").chmod(0o755)
        folder = save_thinking(tmp_path / "tiny")

        def opener(files: Any, options: Any) -> PacedClient:
            client = PacedClient()
            client.limits = type(client.limits)(384, 4096, 4096, (0,))
            return client

        with served({"tiny": folder}, opener=opener) as small:
            small.post({"prompt": "x"}, "/tokenize")
            with pytest.raises(ConfigError, match=r"4096 tokens.*8192.*--force"):
                launch(parse(words(small, "pi")))
            assert main(words(small, "pi", "--force")) == 3
        assert "4096 tokens" in capsys.readouterr().err


class TestPrint:
    @pytest.mark.parametrize("name", ["claude", "opencode", "goose"])
    def test_any_agent_is_told_what_to_set(
        self,
        running: Running,
        home: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
    ) -> None:
        assert main(words(running, "--print", name)) == 0
        text = capsys.readouterr().out
        assert f"http://127.0.0.1:{running.port}" in text and "tiny" in text
        assert "export " in text
        assert not (home / "data").exists()

    def test_without_a_server_it_says_how_to_start_one(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words_given = ["launch", "--url", "http://127.0.0.1:9", "--print", "goose", "m"]
        assert main(words_given) == 0
        printed = capsys.readouterr()
        assert "rvllm serve m" in printed.err
        assert "OLLAMA_HOST=http://127.0.0.1:9" in printed.out
