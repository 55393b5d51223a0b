"""Every sampling parameter out of its range is refused by name, with the value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 2.0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("seed", "1"),
        ("n", 0),
        ("n", 1000),
        ("logprobs", 21),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("ignore_eos", 1),
    ],
)
def test_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop_strings == ("end",)
