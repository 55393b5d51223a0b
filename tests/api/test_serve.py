"""`rvllm serve` from its flags on: keys, origins, TLS, and models that come and go with their memory."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from rvllm_local.commands.serve import settings_from
from rvllm_local.commands.verbs import build_parser
from rvllm_local.errors import ConfigError, EngineError, ModelFileError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.models.single_flight import Questions
from tests.support.api import CHAT, PacedClient, served
from tests.support.processes import eventually, is_running
from tests.support.served import rvllm_serve, save_thinking

KEY = "correct-horse-battery"


def flags(*given: str) -> argparse.Namespace:
    return build_parser().parse_args(["serve", *given])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--host", "0.0.0.0"], "needs a key"), (["--host", "192.168.1.5"], "needs a key"), (["--port", "70000"], "0 to 65535"),
        (["--tls-cert", "x.pem"], "belong together"), (["--allow-origin", "*"], "is not an origin"),
        (["--allow-origin", "https://a.example/path"], "is not an origin"), (["--keep-alive", "soon"], "is not a time"),
        (["--drain", "-1s"], "is not a time"), (["--host", "127.example.org"], "needs a key"),
        (["--allow-host", "a.example:80"], "without a port"), (["--api-key-file", "/nowhere/key"], "cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_refused_with_what_to_do(given: list[str], words: str) -> None:
    joined = [f"--drain={given[1]}"] if given[0] == "--drain" else given
    with pytest.raises(ConfigError, match=words):
        settings_from(flags(*joined), {})


def test_keys_come_from_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# mine\n{KEY}\n\nanother-key\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        settings_from(flags("--api-key-file", str(path)), {})
    path.chmod(0o600)
    assert settings_from(flags("--api-key-file", str(path)), {}).api_keys == (
        KEY,
        "another-key",
    )
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 8"):
        settings_from(flags("--api-key-file", str(path)), {})


def test_a_key_in_the_environment_opens_other_addresses() -> None:
    settings = settings_from(
        flags("--host", "0.0.0.0", "--keep-alive", "10m"), {"RVLLM_API_KEY": KEY}
    )
    assert (settings.api_keys, settings.keep_alive_s) == ((KEY,), 600.0)
    assert KEY not in repr(settings)


def test_models_come_and_go_with_their_memory(tmp_path: Path) -> None:
    first, second = (save_thinking(tmp_path / name) for name in ("first", "second"))
    more = ("--kv-memory", "6MB", "--keep-alive", "1s", "--pin", "first")
    with (
        rvllm_serve([first, second], *more) as (base, _),
        httpx.Client(base_url=base, timeout=240) as client,
    ):
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        body = {**CHAT, "model": "second", "max_tokens": 1500, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            # While it answers, it is not idle.
            assert "data" in next(answer.iter_lines())
            rows = client.get("/health").json()["engines"]
        pids = {row["model"]: row["pid"] for row in rows}
        assert set(pids) == {"first", "second"}
        eventually(lambda: not is_running(pids["second"]), 60)

        def states() -> dict[str, str]:
            rows = client.get("/v1/models").json()["data"]
            return {row["id"]: row["state"] for row in rows}

        eventually(lambda: states()["second"] == "idle", 60)
        assert states()["first"] == "ready"
        assert (
            client.post(
                "/v1/chat/completions", json={**CHAT, "model": "second"}
            ).status_code
            == 200
        )
        assert is_running(pids["first"])


def test_tls_serves_and_a_plain_request_is_none(tmp_path: Path, tiny: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    more: Any = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with rvllm_serve([tiny], "--kv-memory", "6MB", *more) as (base, _):
        assert base.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        assert (
            httpx.post(
                f"{base}/v1/chat/completions", json=CHAT, verify=context, timeout=240
            ).status_code
            == 200
        )
        with pytest.raises(httpx.HTTPError):
            httpx.get(base.replace("https", "http") + "/health", timeout=240)


def test_a_port_that_is_taken_is_named(tiny: Path) -> None:
    with rvllm_serve([tiny], "--kv-memory", "6MB") as (base, _):
        port = base.rpartition(":")[2]
        with (
            pytest.raises(AssertionError, match="cannot be listened on"),
            rvllm_serve([tiny], "--port", port),
        ):
            pass


def test_a_model_that_could_not_be_loaded_makes_the_server_unwell(tiny: Path) -> None:
    broken = [True]

    def opener(files: ModelFiles, options: EngineOptions) -> PacedClient:
        if broken[0]:
            raise ModelFileError("the weights are cut off")
        return PacedClient()

    with served({"tiny": tiny}, opener=opener) as running:
        assert running.client.get("/health").status_code == 200
        assert running.post(CHAT).json()["error"]["code"] == "model_unusable"
        answer = running.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert "cut off" in answer.json()["message"]
        assert running.client.get("/v1/models/tiny").json()["state"] == "failed"
        broken[0] = False
        assert running.post(CHAT).status_code == 200
        assert running.client.get("/health").json()["status"] == "ok"


def test_a_signal_does_not_wait_for_a_model_that_loads(tiny: Path) -> None:
    code = f"""if True:
        import sys, time
        from rvllm_local import cli
        from rvllm_local.server.models import served_model
        def slow(files, options, spare):
            print("loading", file=sys.stderr, flush=True)
            time.sleep(600)
        served_model.open_process = slow
        cli.main(["serve", {str(tiny)!r}, "--port", "0"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        with process.stderr as said:
            assert any("loading" in line for line in said)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_server_takes_descriptors_for_its_connections_and_leaves_no_core_file() -> (
    None
):
    code = """if True:
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        from rvllm_local.server.process_limits import prepare_limits
        prepare_limits(300)
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        prepare_limits(300)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["812", "0"]
    assert "too few for 300 connections" in done.stderr


def test_logs_hold_no_text_of_a_foreign_error() -> None:
    code = """if True:
        import asyncio, logging
        from rvllm_local.server.process_limits import prepare_logs, report_to_log
        prepare_logs()
        async def fail():
            raise ValueError("a prompt")
        async def main():
            report_to_log(asyncio.get_running_loop())
            asyncio.create_task(fail())
            await asyncio.sleep(0.01)
        asyncio.run(main())
        try:
            raise KeyError("a prompt")
        except KeyError:
            logging.exception("it failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (
        "ValueError" in done.stderr
        and "KeyError" in done.stderr
        and "it failed" in done.stderr
    )
    assert "a prompt" not in done.stderr.replace('"a prompt"', "")


def test_an_engine_that_hangs_takes_one_thread_however_often_it_is_asked() -> None:
    async def main() -> None:
        questions, asked, gate = Questions(0.05), list[int](), threading.Event()

        def hang() -> int:
            asked.append(1)
            gate.wait(60)
            return 5

        async def answer() -> int | None:
            try:
                return await questions.ask(asked, "stats", hang)
            except EngineError:
                return None

        for _ in range(3):
            with pytest.raises(EngineError, match="did not answer"):
                await asyncio.gather(
                    *(questions.ask(asked, "stats", hang) for _ in range(20))
                )
        gate.set()
        assert len(asked) == 1
        async with asyncio.timeout(60):
            while await answer() != 5:
                pass

    asyncio.run(main())
