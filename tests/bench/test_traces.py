"""Traces: the same requests at every rate, sizes as asked for, recorded ones read with a reason for each bad line."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from rvllm_local.bench import trace
from rvllm_local.errors import ConfigError


@pytest.mark.parametrize("name", trace.TRACES)
def test_a_trace_repeats_itself_and_scales(name: str) -> None:
    first, again = (trace.TRACES[name](40, 3, trace.Mix()) for _ in range(2))
    assert first == again
    assert first != trace.TRACES[name](40, 4, trace.Mix()), "the seed changes it"
    double = first.at_rate(2.0)
    assert [one.turns for one in double.sessions] == [
        one.turns for one in first.sessions
    ]
    assert [one.at * 2 for one in double.sessions] == pytest.approx(
        [one.at for one in first.sessions]
    )
    assert {one.at for one in first.at_rate(float("inf")).sessions} == {0.0}
    assert (
        len({json.dumps(one.turns[0].messages[0]) for one in first.sessions}) == 40
    ), "no prompt comes twice"


def test_bursts_come_at_the_mean_rate() -> None:
    times = [one.at for one in trace.bursty(2000, 1, trace.Mix()).sessions]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1.0, abs=0.01)
    assert statistics.stdev(gaps) > 1.5, "a Poisson process would have 1"


def test_sizes_keep_to_the_mix() -> None:
    sessions = trace.bursty(500, 1, trace.Mix(50, 200, 16)).sessions
    small = [
        len(one.turns[0].messages[0]["content"].split())
        for one in sessions
        if one.kind == "small"
    ]
    assert min(small) >= 50 and max(small) <= 200
    assert 5 < sum(one.kind == "large" for one in sessions) < 50
    assert {one.turns[0].max_tokens for one in sessions} == {16}


def test_a_saved_trace_is_the_same(tmp_path: Path) -> None:
    made = trace.agent(2, 1, trace.Mix(), turns=3, prefix=20)
    trace.save(made, tmp_path / "agent.jsonl")
    found = trace.load(tmp_path / "agent.jsonl")
    assert found.num_requests == 6 and found.sessions[0].tools
    assert [one.turns for one in found.sessions] == [one.turns for one in made.sessions]


def test_recorded_sizes_become_prompts(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    rows = [
        {"at": 105.5, "prompt_tokens": 30, "output_tokens": 7},
        {"at": 100, "prompt": "Hello"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = trace.load(path).sessions
    assert (first.at, first.turns[0].messages[0]["content"]) == (0.0, "Hello")
    assert (second.at, second.turns[0].max_tokens) == (5.5, 7)
    assert len(second.turns[0].messages[0]["content"].split()) == 30


@pytest.mark.parametrize("line", ["{", "[]", '{"at": "soon", "prompt": "x"}', '{"at": 1}', '{"at": NaN, "prompt": "x"}',
                                  '{"at": 1, "prompt": "x", "max_tokens": -1}', '{"at": 1, "messages": [5]}',
                                  '{"at": 1, "prompt": "x", "max_tokens": 0}', '{"at": 1, "prompt_tokens": Infinity}',
                                  '{"at": 1, "prompt_tokens": 1e12}', '{"at": 1, "prompt_tokens": -3}',
                                  '{"at": 1, "prompt": "x", "think_s": NaN}', '{"at": 1, "prompt": "x", "think_s": -1}',
                                  '{"at": 1, "prompt": ["x"]}', '{"at": 1, "prompt": "\\ud800"}',
                                  '{"at": 1, "prompt": "x", "tools": "search"}', "[" * 100_000])  # fmt: skip
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"at": 0, "prompt": "fine"}\n' + line)
    with pytest.raises(ConfigError, match="line 2"):
        trace.load(path)


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """A text may hold other line ends as they are; a byte order mark is none of it."""
    path = tmp_path / "recorded.jsonl"
    texts = ["one\u2028line", "a\x85page"]
    path.write_text(
        "\ufeff"
        + "\r\n".join(
            json.dumps({"at": 0, "prompt": text}, ensure_ascii=False) for text in texts
        )
    )
    assert [
        one.turns[0].messages[0]["content"] for one in trace.load(path).sessions
    ] == texts


def test_nothing_to_send(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for path in (tmp_path / "empty.jsonl", tmp_path / "missing.jsonl"):
        with pytest.raises(ConfigError, match=path.name):
            trace.load(path)
