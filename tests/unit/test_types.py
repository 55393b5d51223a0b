"""Every sampling parameter out of its range is refused by name, with the value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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
        ("stop", ["x"] * 65),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("ignore_eos", 1),
        ("stop", 5),
        ("temperature", 10**400),
        pytest.param("max_tokens", 10**5000, id="max_tokens of 5000 digits"),
        ("logit_bias", [1]),
    ],
)
def test_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop_strings == ("end",)


def test_numbers_of_numpy_become_plain_ones() -> None:
    params = SamplingParams(
        max_tokens=np.int64(5),
        temperature=np.float32(0.5),
        seed=np.uint64(7),
        logit_bias={np.int32(3): np.float64(1)},
    )
    assert params == SamplingParams(
        max_tokens=5, temperature=0.5, seed=7, logit_bias={3: 1.0}
    )
    assert [
        type(value) for value in (params.max_tokens, params.temperature, params.seed)
    ] == [int, float, int]


def test_a_bias_that_changes_later_changes_no_request() -> None:
    biases = {1: 2.0}
    params = SamplingParams(logit_bias=biases, stop=None)
    biases[1] = 1e9
    assert params.logit_bias == {1: 2.0} and params.stop_strings == ()
