"""`rvllm bench serve` refuses before it sends anything, heeds every flag it takes, and loses nothing that it has measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rvllm_local.bench import record, trace
from rvllm_local.bench.processes import resident
from rvllm_local.cli import main
from tests.bench.endpoint import GOOD, HEAD, Scripted
from tests.support.processes import eventually

FEW = [
    "--model",
    "small",
    "--requests",
    "2",
    "--max-tokens",
    "4",
    "--rate",
    "inf",
    "--timeout",
    "60",
]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rate", "5", "nan"], "nan"),
        (["--rate", "5", "-1"], "-1"),
        (["--rate", "5", "5.0"], "twice"),
        (["--rate", "1e-9"], "days"),
        (["--rate", "1e-320"], "days"),
        (["--timeout", "nan"], "--timeout"),
        (["--timeout", "0"], "--timeout"),
        (["--slo-ttft", "-1"], "--slo-ttft"),
        (["--slo-itl", "nan"], "--slo-itl"),
        (["--turns", "3"], "--turns"),
        (["--trace", "agent", "--turns", "0"], "--turns"),
        (["--trace", "agent", "--prompt-tokens", "5", "9"], "--prompt-tokens"),
        (["--rows"], "--json"),
        (["--json", "nowhere/out.json"], "nowhere"),
        (["--svg", "."], "folder"),
        (["--svg", "out", "--json", "./out"], "different files"),
        (["--save-trace", "nowhere/trace.jsonl"], "nowhere"),
        (["--body", '{"max_tokens": 500}'], "max_tokens"),
        (["--body", '{"stream": false}'], "stream"),
        (["--body", "[" * 100_000], "--body"),
        (["--trace", "burst"], "bursty"),
        (["--url", "http://"], "host"),
        (["--url", "http://[::1"], "--url"),
        (["--url", "http://127.0.0.1:nine/v1"], "--url"),
        (["--url", "http://127.0.0.1:9/v1?key=1"], "base address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    flags: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with Scripted(GOOD) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW, *flags]) == 2
        assert server.bodies == []
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert main(["bench", "serve", *FEW, "--json", str(tmp_path / "out.json")]) == 2
    assert "permissions" in capsys.readouterr().err


def recorded(path: Path, *rows: object) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_recorded_trace_runs_once_at_its_own_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(
        tmp_path / "mine.jsonl",
        *({"at": at / 5, "prompt": "hi", "max_tokens": 4} for at in range(3)),
    )
    common = ["bench", "serve", "--model", "small", "--trace", made, "--timeout", "60"]
    with Scripted(GOOD) as server:
        files = [
            "--json",
            str(tmp_path / "out.json"),
            "--save-trace",
            str(tmp_path / "again.jsonl"),
        ]
        assert main([*common, "--url", server.url, *files]) == 0
        for flags in (
            ["--rate", "1", "2"],
            ["--requests", "9"],
            ["--max-tokens", "9"],
            ["--seed", "3"],
        ):
            assert main([*common, "--url", server.url, *flags]) == 2
            assert flags[0] in capsys.readouterr().err
        assert len(server.bodies) == 3
    assert [one.at for one in trace.load(tmp_path / "again.jsonl").sessions] == [
        0.0,
        0.2,
        0.4,
    ]
    assert record.load(tmp_path / "out.json").runs["mine"][
        "rate"
    ].value == pytest.approx(3 / 0.4)


def test_a_trace_is_not_replaced_by_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(tmp_path / "mine.jsonl", {"at": 0, "prompt": "hi"})
    assert main(["bench", "serve", "--trace", made, "--json", made]) == 2
    assert (
        "different files" in capsys.readouterr().err and "hi" in Path(made).read_text()
    )


def test_times_that_are_no_seconds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(
        tmp_path / "ms.jsonl",
        {"at": 1_764_000_000_000, "prompt": "a"},
        {"at": 0, "prompt": "b"},
    )
    assert main(["bench", "serve", "--trace", made]) == 2
    assert "days" in capsys.readouterr().err


def test_the_older_route_takes_text_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(
        tmp_path / "parts.jsonl",
        {"at": 0, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
    )
    assert main(["bench", "serve", "--trace", made, "--api", "completions"]) == 2
    assert "more than text" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["schlüssel", "a\x01b"])
def test_a_key_that_no_header_can_have_is_refused(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RVLLM_API_KEY", key)
    with Scripted(GOOD) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW]) == 2
    said = capsys.readouterr()
    assert key not in said.out + said.err


def test_no_password_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    with Scripted(
        [b"HTTP/1.1 401 No\r\nConnection: close\r\n\r\nme:hunter2 is wrong"]
    ) as server:
        flags = [
            *FEW,
            "--url",
            server.url.replace("//", "//me:hunter2@"),
            "--json",
            str(out),
            "--rows",
        ]
        monkeypatch.setattr(sys, "argv", ["rvllm", "bench", "serve", *flags])
        assert main(["bench", "serve", *flags]) == 1
        monkeypatch.setenv("RVLLM_API_KEY", "sk-1")
        assert main(["bench", "serve", *flags]) == 2, "only one of the two can be sent"
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err + out.read_text()
    assert f"--url {server.url}" in record.load(out).command


@pytest.mark.parametrize(
    "listing",
    [
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2**21,
        b"nonsense",
    ],
)
def test_a_strange_list_of_models_stops_nothing(
    listing: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scripted([listing]) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW[2:]]) == 1
        assert [body.get("model") for body in server.bodies] == [
            None,
            "default",
            "default",
        ]
    assert "errors: 2 x" in capsys.readouterr().out


def test_a_list_of_models_that_trickles_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rvllm_local.bench import arguments as bench_arguments

    monkeypatch.setattr(bench_arguments, "_LISTING_S", 0.5)
    with Scripted([b"HTTP/1.1 200 OK\r\n\r\n", *([b" ", 0.1] * 3000)]) as server:
        assert bench_arguments._first_model(server.url, {}) == "default"
        assert not server.has_played, "the whole list was waited for"


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    with Scripted([HEAD, 0.05, *GOOD[1:]]) as server:
        server.num_answered_at_once = 5
        command = [sys.executable, "-m", "rvllm_local.cli", "bench", "serve", "--url", server.url, "--model", "small",
                   "--trace", "steady", "--requests", "4", "--max-tokens", "4", "--prompt-tokens", "5", "9",
                   "--rate", "20", "0.5", "--json", str(out), "--svg", str(plot)]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            # Of the second rate one has ended, and one is held.
            eventually(lambda: len(server.bodies) >= 6 and server.num_left >= 5, 60)
            child.send_signal(signal.SIGINT)
            said, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    runs = record.load(out).runs
    assert [(name, run["requests"].value) for name, run in runs.items()] == [
        ("steady at 20/s", 4),
        ("steady at 0.5/s (interrupted)", 1),
    ]
    assert "1 of 4 requests had ended" in said and plot.exists()


def test_a_process_that_ends_meanwhile_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_noticed = threading.Event()

    def watched(pid: int) -> int:
        num_bytes = resident(pid)
        if num_bytes == 0:
            is_noticed.set()
        return num_bytes

    monkeypatch.setattr("rvllm_local.bench.serve.resident", watched)
    waiting = [sys.executable, "-c", "input()"]
    steps = [HEAD, "hang", *GOOD[1:]]
    with (
        subprocess.Popen(waiting, stdin=subprocess.PIPE) as child,
        Scripted(steps) as server,
    ):

        def end_meanwhile() -> None:
            eventually(lambda: bool(server.bodies), 60)
            child.kill()
            child.wait()
            assert is_noticed.wait(60)
            server.release.set()

        ender = threading.Thread(target=end_meanwhile)
        ender.start()
        command = ["bench", "serve", "--url", server.url, *FEW]
        assert main([*command, "--timeout", "60", "--pid", str(child.pid)]) == 0
        ender.join()
    assert "--pid ended" in capsys.readouterr().out
