"""`rvllm serve` from its flags on: keys, origins, TLS, and models that come and go with their memory."""

from __future__ import annotations

import argparse
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from rvllm_local.cli import _parser
from rvllm_local.errors import ConfigError
from rvllm_local.verbs.serve import settings_from
from tests.support.api import CHAT
from tests.support.processes import eventually, is_running
from tests.support.served import rvllm_serve, save_thinking

KEY = "correct-horse-battery"


def flags(*given: str) -> argparse.Namespace:
    return _parser().parse_args(["serve", *given])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--host", "0.0.0.0"], "needs a key"), (["--host", "192.168.1.5"], "needs a key"), (["--port", "70000"], "0 to 65535"),
        (["--tls-cert", "x.pem"], "belong together"), (["--allow-origin", "*"], "is not an origin"),
        (["--allow-origin", "https://a.example/path"], "is not an origin"), (["--keep-alive", "soon"], "is not a time"),
        (["--drain", "-1s"], "is not a time"), (["--api-key-file", "/nowhere/key"], "cannot be read"),
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
    assert settings_from(flags("--api-key-file", str(path)), {}).api_keys == (KEY, "another-key")
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 8"):
        settings_from(flags("--api-key-file", str(path)), {})


def test_a_key_in_the_environment_opens_other_addresses() -> None:
    settings = settings_from(flags("--host", "0.0.0.0", "--keep-alive", "10m"), {"RVLLM_API_KEY": KEY})
    assert (settings.api_keys, settings.keep_alive_s) == ((KEY,), 600.0)
    assert KEY not in repr(settings)


def test_models_come_and_go_with_their_memory(tmp_path: Path) -> None:
    first, second = (save_thinking(tmp_path / name) for name in ("first", "second"))
    more = ("--kv-memory", "6MB", "--keep-alive", "1s", "--pin", "first")
    with rvllm_serve([first, second], *more) as (base, _), httpx.Client(base_url=base, timeout=60) as client:
        for name in ("first", "second"):
            assert client.post("/v1/chat/completions", json={**CHAT, "model": name}).status_code == 200
        pids = {row["model"]: row["pid"] for row in client.get("/health").json()["engines"]}
        assert set(pids) == {"first", "second"}
        eventually(lambda: not is_running(pids["second"]), 20)
        states = {row["id"]: row["state"] for row in client.get("/v1/models").json()["data"]}
        assert (states["first"], states["second"]) == ("ready", "idle")
        assert client.post("/v1/chat/completions", json={**CHAT, "model": "second"}).status_code == 200
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
        assert httpx.post(f"{base}/v1/chat/completions", json=CHAT, verify=context, timeout=60).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(base.replace("https", "http") + "/health", timeout=5)


def test_a_port_that_is_taken_is_named(tiny: Path) -> None:
    with rvllm_serve([tiny], "--kv-memory", "6MB") as (base, _):
        port = base.rpartition(":")[2]
        began = time.monotonic()
        with pytest.raises(AssertionError, match="cannot be listened on"), rvllm_serve([tiny], "--port", port):
            pass
        assert time.monotonic() - began < 20
