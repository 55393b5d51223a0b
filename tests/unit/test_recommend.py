"""`rvllm recommend` names the best model for a machine, by arithmetic."""

from __future__ import annotations

import json

import pytest

from rvllm_local.cli import main
from rvllm_local.commands import recommend
from rvllm_local.tui import offers


@pytest.mark.parametrize(
    ("bytes_per_s", "room", "best"),
    [
        (400 * 10**9, 25 * 10**9, "qwen3.5-35b-a3b"),
        (10**8, 2 * 10**9, None),
    ],
)
def test_the_best_model_fits_and_is_fast_enough(
    bytes_per_s: float,
    room: int,
    best: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def measured() -> float:
        return bytes_per_s

    monkeypatch.setattr(recommend, "measure_bandwidth", measured)
    monkeypatch.setattr(offers, "_room", lambda: room)
    monkeypatch.setattr(offers, "is_on_cpu", lambda: False)
    assert main(["recommend", "--json"]) == (0 if best else 1)
    answer = json.loads(capsys.readouterr().out)
    sizes = {row["name"]: row["size"] for row in answer["models"]}
    if best is None:
        assert answer["best"] is None
        return
    assert answer["best"] in sizes
    assert sizes[answer["best"]] == sizes[best] == max(sizes.values())
    assert main(["recommend"]) == 0
    assert f"rvllm pull {answer['best']}" in capsys.readouterr().out
