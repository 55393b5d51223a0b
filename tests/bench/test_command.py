"""`rvllm bench` as it is typed: tables, JSON and plots, and what it says to wrong flags."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rvllm_local.bench import record
from rvllm_local.cli import main
from tests.bench.endpoint import DONE, GOOD, HEAD, WORDS, Scripted, chunk
from tests.support.tiny import save_tiny

FEW = [
    "--model",
    "small",
    "--requests",
    "3",
    "--max-tokens",
    "4",
    "--prompt-tokens",
    "5",
    "9",
    "--rate",
    "50",
    "inf",
    "--timeout",
    "60",
]


def test_an_endpoint_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot, saved = (
        tmp_path / name for name in ("out.json", "out.svg", "trace.jsonl")
    )
    files = ["--json", str(out), "--svg", str(plot), "--save-trace", str(saved)]
    with Scripted(GOOD) as server:
        assert (
            main(
                [
                    "bench",
                    "serve",
                    "--url",
                    server.url,
                    "--pid",
                    str(os.getpid()),
                    *FEW,
                    *files,
                ]
            )
            == 0
        )
        printed = capsys.readouterr().out
        assert (
            "bursty at 50/s" in printed
            and "P99" in printed
            and "peak memory" in printed
        )
        assert len(server.bodies) == 6 and all(
            body["ignore_eos"] is True for body in server.bodies
        )
        assert (
            main(
                [
                    "bench",
                    "serve",
                    "--url",
                    server.url,
                    "--trace",
                    str(saved),
                    "--timeout",
                    "60",
                ]
            )
            == 0
        )
    found = record.load(out)
    run = found.runs["bursty at 50/s"]
    assert (
        run["errors"].value,
        run["output_tokens"].value,
        run["prompt_tokens"].value,
    ) == (0, 12, 60)
    assert run["peak_memory"].value > 10**7
    assert found.details["bursty at inf/s"]["failures"] == {}
    ElementTree.fromstring(plot.read_text())


def test_errors_and_short_answers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with Scripted([HEAD, *WORDS]) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW]) == 1, (
            "nothing came whole"
        )
    assert "errors: 3 x unfinished" in capsys.readouterr().out
    with Scripted([HEAD, *WORDS[:2], chunk(finish="stop"), DONE]) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW]) == 0
    printed = capsys.readouterr().out
    assert (
        "3 answers ended early (mean length 2.0 tokens)" in printed
        and "without usage" in printed
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--url", "localhost:80"], "localhost:80"),
        (["--rate", "0"], "rate"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--body", "[1]"], "--body"),
        (["--requests", "0"], "--requests"),
        (["--prompt-tokens", "9", "5"], "--prompt-tokens"),
        (["--pid", "99999999"], "99999999"),
    ],
)
def test_wrong_flags_are_refused_by_name(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scripted(GOOD) as server:
        assert main(["bench", "serve", "--url", server.url, *FEW, *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_engine_is_measured_in_this_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(save_tiny("llama", tmp_path / "llama")), tmp_path / "out.json"
    common = ["--rounds", "1", "--kv-memory", "4MB", "--json", str(out)]
    assert (
        main(
            [
                "bench",
                "decode",
                model,
                "--rows",
                "1",
                "2",
                "--context",
                "20",
                "--tokens",
                "6",
                *common,
            ]
        )
        == 0
    )
    found = record.load(out)
    assert (
        found.runs["2 x 20"]["tokens_per_s"].value > 0
        and 5 <= found.runs["1 x 20"]["steps"].value <= 7
    )
    assert 0 < found.runs["1 x 20"]["of_copy"].value < 1
    assert main(["bench", "prefill", model, "--context", "40", *common]) == 0
    assert record.load(out).runs["40 tokens"]["ttft"].value > 0
    assert "GB/s" in capsys.readouterr().out
    assert main(["bench", "decode", model, "--rows", "0"]) == 2


def test_streams_are_measured_while_they_decode_together(tmp_path: Path) -> None:
    """Prompts that take as long as many steps: the first streams must not be over before
    the last begins. Answers are long, so that a busy machine does not end them first.
    """
    model, out = str(save_tiny("llama", tmp_path / "llama")), tmp_path / "out.json"
    sizes = ["--rows", "8", "--context", "400", "--tokens", "300"]
    # One round: the medians of several are no longer each other's inverse.
    common = ["--rounds", "1", "--kv-memory", "16MB", "--json", str(out)]
    assert main(["bench", "decode", model, *sizes, *common]) == 0
    run = record.load(out).runs["8 x 400"]
    assert 6 <= run["tokens_per_s"].value * run["step"].value <= 8.1, (
        "rows a step, by what the engine counts"
    )


def test_answers_that_the_context_cuts_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes that a step must read are counted for the answers that were asked for."""
    model = str(save_tiny("llama", tmp_path / "llama"))
    sizes = ["--rows", "1", "--context", "2000", "--tokens", "500"]
    assert (
        main(["bench", "decode", model, *sizes, "--rounds", "1", "--kv-memory", "16MB"])
        == 2
    )
    assert "--tokens than 500" in capsys.readouterr().err


def test_kernels_say_where_they_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    from rvllm_local.metal_kernels import default_backend

    if default_backend() != "none":
        pytest.skip("the kernels can run here")
    assert main(["bench", "kernels"]) == 1
    assert "no Metal or CUDA device" in capsys.readouterr().err


def test_start_up_is_measured(tmp_path: Path) -> None:
    model, out = str(save_tiny("llama", tmp_path / "llama")), tmp_path / "out.json"
    assert (
        main(
            [
                "bench",
                "startup",
                model,
                "--rounds",
                "1",
                "--kv-memory",
                "4MB",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    run = record.load(out).runs[model]
    assert (
        0 < run["first_token"].value <= run["whole"].value
        and run["peak_memory"].value > 10**7
    )
    assert (
        main(["bench", "startup", str(tmp_path / "nothing"), "--rounds", "1"]) == 1
    ), "a process that fails is no time"


def test_a_process_that_says_much_is_not_stopped_by_it() -> None:
    from rvllm_local.bench import startup

    found = startup.measure(
        "import sys; sys.stderr.write('la ' * 10**6); print('first')"
    )
    assert found.line == "first"


def test_no_prompt_of_a_measurement_begins_like_another() -> None:
    """One that is cached already would be fast, and say nothing."""
    from rvllm_local.bench import in_process

    begins = [
        tuple(in_process._prompt(length, number)[:16])
        for length in (128, 512, 2048)
        for number in range(300)
    ]
    assert len({*begins}) == len(begins)


@pytest.mark.parametrize("verb", ["decode", "prefill", "startup", "kernels"])
def test_a_file_that_cannot_be_written_is_refused_first(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if verb == "kernels" else ["no-such-model"]
    assert main(["bench", verb, *model, "--json", "nowhere/out.json"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err


def test_the_page_shows_the_results() -> None:
    """The pages and plots are what `python -m benchmarks.page` makes of benchmarks/results."""
    from benchmarks import page

    for path, text in page.wanted(page.PAGES, page.RESULTS).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run python -m benchmarks.page"
        )


def test_counts_are_the_same_every_time() -> None:
    from benchmarks import counts

    core = counts.open_tiny()
    counts.fill(core, 4, counts.SAMPLED)  # what is made at its first use
    counts.drain(core)
    first, second = (
        counts.step_figures(core, 4, counts.SAMPLED)["calls_per_step"].value
        for _ in range(2)
    )
    assert first == pytest.approx(second, rel=0.02) and first > 50
    assert counts.reader()["calls_per_event"].value < 35, (
        "the reader shares its cores with the server"
    )
