"""Figures, records, comparisons and plots."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rvllm_local.bench import record, svg
from rvllm_local.bench.metrics import (
    Figure,
    Slo,
    exact,
    intervals,
    percentile,
    spread,
    summary,
)
from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.bench.processes import Bystanders, check_pid, resident
from rvllm_local.bench.text_table import number
from rvllm_local.cli import main
from rvllm_local.errors import ConfigError
from tests.support.processes import eventually


def outcome(
    ttft: float, gap: float = 0.1, tokens: int = 5, failure: Failure | None = None
) -> Outcome:
    times = [1 + ttft + gap * index for index in range(tokens)]
    return Outcome(
        "small", 0, 1.0, tokens, sent=1.0, ended=times[-1], times=times, failure=failure
    )


def bootstrap(
    groups: list[np.ndarray], statistic: Callable[[np.ndarray], float], seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval as one would write it down: draw whole groups again, and look at each draw."""
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(
            np.concatenate(
                [groups[index] for index in rng.integers(0, len(groups), len(groups))]
            )
        )
        for _ in range(400)
    ]
    return percentile(np.asarray(drawn), 2.5), percentile(np.asarray(drawn), 97.5)


def test_percentiles_are_values_that_occurred() -> None:
    values = np.arange(1.0, 101.0)
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [
        50,
        95,
        99,
        100,
    ]
    assert percentile(np.asarray([3.0]), 99) == 3 and math.isinf(
        percentile(np.zeros(0), 50)
    )


def test_an_error_is_slower_than_every_answer() -> None:
    rows = [outcome(0.1 * index) for index in range(1, 20)] + [
        outcome(0.0, failure=Failure.CUT)
    ]
    found = summary(rows, 10.0, Slo(ttft_s=1.05, itl_s=0.2))
    assert found["ttft_p50"].value == pytest.approx(1.0)
    assert math.isinf(found["ttft_p99"].value), "one of twenty failed"
    assert found["ttft_p95"].value == pytest.approx(1.9)
    assert found["itl_p50"].value == pytest.approx(0.1)
    assert (found["goodput"].value, found["errors"].value) == (1.0, 1)
    assert found["tokens_per_s"].value == pytest.approx(19 * 5 / 10)
    assert number(found["ttft_p99"].value, "s") == "failed"


def test_the_interval_draws_whole_requests() -> None:
    """Ten requests of 100 equal gaps each know as much as ten values, not as a thousand."""
    values = np.random.default_rng(1).normal(10, 1, 10)
    (grouped,) = intervals([np.full(100, value) for value in values], (50,))
    (plain,) = intervals([np.asarray([value]) for value in values], (50,))
    assert grouped[1] - grouped[0] == pytest.approx(plain[1] - plain[0], rel=0.5)
    assert grouped[0] <= np.median(values) <= grouped[1]


def test_intervals_of_several_percentiles_are_those_of_each() -> None:
    draw = np.random.default_rng(3)
    groups = [draw.normal(10, 1, int(draw.integers(1, 9))) for _ in range(30)] + [
        np.asarray([math.inf])
    ]
    for percent, found in zip(
        (50, 95, 99), intervals(groups, (50, 95, 99)), strict=True
    ):
        assert found == bootstrap(
            groups, lambda drawn, percent=percent: percentile(drawn, percent)
        )  # type: ignore[misc]
    assert intervals([np.zeros(0)], (50,)) == [(math.inf, math.inf)]


def test_many_requests_are_summed_up_at_once() -> None:
    began = time.process_time()
    summary(
        [outcome(0.1 * (index % 9), tokens=48) for index in range(2000)], 10.0, Slo()
    )
    assert time.process_time() - began < 20, "an interrupt does not wait longer, either"


def saved(path: Path, runs: dict[str, dict[str, Figure]], kind: str = "decode") -> str:
    record.new_record(kind, runs).save(path)
    return str(path)


def test_a_record_keeps_its_figures_and_says_where_they_are_from(
    tmp_path: Path,
) -> None:
    runs = {"x": {"a": spread([1.0, 2.0, 3.0], "s"), "b": exact(math.inf, "s")}}
    found = record.load(Path(saved(tmp_path / "a.json", runs)))
    assert found.runs == runs
    assert found.machine and found.date and found.versions["python"] and found.command


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "runs": {"x": {"y": 5}}}']
)
def test_what_is_no_record_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(text)
    assert (
        main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
        == 2
    )
    assert "a.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "verdict", "status"),
    [
        (Figure(100, "", 90, 110), Figure(120, "", 105, 130), "noise", 0),
        (
            Figure(100, "", 90, 110),
            Figure(150, "", 140, 160),
            "worse",
            0,
        ),  # times are no ground to fail
        (Figure(100, "", 90, 110), Figure(50, "", 40, 60), "better", 0),
        (
            Figure(100, "", 90, 110, "higher"),
            Figure(50, "", 40, 60, "higher"),
            "worse",
            0,
        ),
        (exact(100, "", stable=True), exact(105, "", stable=True), "same", 0),
        (exact(100, "", stable=True), exact(112, "", stable=True), "worse", 1),
        (exact(100, "", stable=True), exact(80, "", stable=True), "better", 0),
        (
            exact(100, "", "higher", stable=True),
            exact(80, "", "higher", stable=True),
            "worse",
            1,
        ),
        (exact(0, "", stable=True), exact(3, "", stable=True), "worse", 1),
        (exact(100, "s"), exact(math.inf, "s"), "worse", 0),
        (
            exact(100, "s"),
            exact(101, "s"),
            "noise",
            0,
        ),  # measured once: nobody knows the noise
        (exact(100, "s"), exact(150, "s"), "worse", 0),
        (exact(0, ""), exact(3, ""), "worse", 0),
        (exact(100, "", stable=True), exact(101, ""), "noise", 0),
        (exact(math.inf, "s"), exact(math.inf, "s"), "same", 0),
        (exact(math.inf, "s"), exact(1, "s"), "better", 0),
    ],
)
def test_noise_is_told_from_change(
    before: Figure,
    after: Figure,
    verdict: str,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [
        saved(tmp_path / name, {"run": {"figure": one}})
        for name, one in (("a", before), ("b", after))
    ]
    assert main(["bench", "compare", *paths]) == status
    assert verdict in capsys.readouterr().out.splitlines()[-2 if status else -1]


def test_a_stable_figure_that_is_gone_is_a_regression(tmp_path: Path) -> None:
    before = saved(
        tmp_path / "a",
        {
            "run": {
                "calls": exact(5, "", stable=True),
                "steps": exact(5, "", stable=True),
            }
        },
    )
    after = saved(tmp_path / "b", {"run": {"steps": exact(5, "", stable=True)}})
    assert main(["bench", "compare", before, after, "--stable"]) == 1
    assert main(["bench", "compare", after, before, "--stable"]) == 0, (
        "a new one is not"
    )
    other = saved(tmp_path / "c", {"run": {"steps": exact(5, "")}}, kind="prefill")
    assert main(["bench", "compare", before, other]) == 2


def test_records_without_a_common_figure_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved(tmp_path / "a", {"steady at 1/s": {"errors": exact(0, "")}})
    after = saved(tmp_path / "b", {"bursty at 1/s": {"errors": exact(0, "")}})
    assert main(["bench", "compare", before, after]) == 2
    said = capsys.readouterr().err
    assert "steady at 1/s" in said and "bursty at 1/s" in said
    assert main(["bench", "compare", before, before, "--stable"]) == 2
    assert "stable" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", ["nan", "inf", "1", "-2"])
def test_what_is_no_tolerance_is_refused(ratio: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a", {"run": {"calls": exact(5, "", stable=True)}})
    assert main(["bench", "compare", path, path, "--fail-over", ratio]) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", math.nan),
        ("value", "12"),
        ("low", True),
        ("better", "more"),
        ("stable", "yes"),
        ("unit", 5),
    ],
)
def test_a_figure_that_is_none_is_refused(
    field: str, value: object, tmp_path: Path
) -> None:
    path = Path(saved(tmp_path / "a", {"run": {"calls": exact(5, "")}}))
    found = json.loads(path.read_text())
    found["runs"]["run"]["calls"][field] = value
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=field if field == "stable" else "no"):
        record.load(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "runs": {}, "kind": "decode", "label": 5}']
)
def test_records_that_are_odd_further_down(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json"):
        record.load(tmp_path / "a.json")


def test_who_is_gone_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved(
        tmp_path / "a",
        {"run": {"calls": exact(5, "", stable=True), "steps": exact(1, "")}},
    )
    after = saved(tmp_path / "b", {"run": {"steps": exact(1, "")}})
    assert main(["bench", "compare", before, after]) == 1
    assert "calls is gone" in capsys.readouterr().out


@pytest.mark.skipif(
    sys.platform != "linux", reason="names of processes are read from /proc"
)
def test_a_name_that_is_cut_within_a_letter_hides_no_process() -> None:
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xc3\\xa4'[:1] * 3, 0, 0, 0); print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            assert resident(child.pid) > 10**6
        finally:
            child.kill()


WITH_A_CHILD = """
import subprocess, sys
print("alone", flush=True)
input()
code = "held = bytearray(50_000_000); print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print("together", flush=True)
child.wait()
"""


def test_memory_counts_children() -> None:
    command = [sys.executable, "-c", WITH_A_CHILD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        assert parent.stdout.readline() == "alone\n"
        before = resident(parent.pid)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "together\n"
        assert resident(parent.pid) > before + 45_000_000
        parent.stdin.close()
    with pytest.raises(ConfigError, match=str(parent.pid)):
        check_pid(parent.pid)


@pytest.mark.skipif(
    sys.platform != "linux", reason="the machine's CPU time is read from /proc"
)
def test_others_are_told_from_the_server_and_from_us() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(spin) as server, subprocess.Popen(spin) as other:
        watched, everything = Bystanders(server.pid), Bystanders(os.getpid())

        def is_told() -> bool:
            """Whoever is not below the watched process is another."""
            with_other, without = watched.share(), everything.share()
            return None not in (with_other, without) and with_other > without

        eventually(is_told, 60)
        server.kill()
        other.kill()


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1.0, 2.0)],
        [(0.0, 0.0), (5.0, 1e6), (6.0, math.inf)],
        [(1.0, 3.0), (2.0, 3.0)],
        [(1e-14, 1e-14)],
    ],
)
def test_a_plot_is_drawn_from_any_points(
    is_log: bool, points: list[tuple[float, float]]
) -> None:
    text = svg.draw(
        svg.Plot("P99 <of> all", "requests/s", "s", is_log=is_log),
        {"one & only": points},
    )
    root = ElementTree.fromstring(text)
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "P99 <of> all" in words and "one & only" in words
    assert "nan" not in text and "inf" not in text
