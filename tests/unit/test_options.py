"""An engine's options: a value that cannot be is refused by name, never taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from rvllm_local import LLM
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ConfigError, ParameterError
from rvllm_local.metal_kernels import default_backend
from rvllm_local.options import EngineOptions, OptionArguments, option_table
from rvllm_local.types import SamplingParams
from tests.support.tiny import save_tiny


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention", "metal"),
        ("cache", "ram"),
        ("kv_dtype", "fp8"),
        ("max_rows", 0),
        ("max_rows", True),
        ("max_rows", 2.5),
        ("prefill_chunk", -1),
        ("context_length", 0),
        ("context_length", 31),
        ("kv_memory", 0),
        ("kv_memory", 2**63),
        ("max_waiting", -1),
        ("system_reserve", -1),
        ("deterministic", "yes"),
        ("step_target_ms", 0),
        ("step_target_ms", 2.5),
        ("cache_dir", ""),
        ("draft", ""),
        ("adapters", (("a", "x"), ("a", "y"))),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineOptions(**{name: value})


def test_every_option_can_be_given_in_python_and_as_text() -> None:
    fields = EngineOptions.__struct_fields__
    assert (*get_type_hints(OptionArguments), "hosts") == fields
    assert (*option_table(), "adapters", "hosts") == fields
    assert all(option.help for option in option_table().values())


@pytest.mark.parametrize("draft", ["ngram", "auto", "off", "qwen3-0.6b", "/a/folder"])
def test_a_drafter_is_named_as_text(draft: str) -> None:
    assert option_table()["draft"].convert(draft) == draft


@pytest.mark.parametrize("name", option_table())
def test_a_frame_with_an_option_that_cannot_be_does_not_decode(name: str) -> None:
    frame = msgspec.msgpack.encode({name: -1})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(frame, type=EngineOptions)


def test_a_name_that_is_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_row"):
        LLM("nothing of this name", max_row=3)  # type: ignore[call-arg]


def test_the_python_api_refuses_an_option_before_it_looks_for_the_model() -> None:
    with pytest.raises(
        ConfigError, match="kv_dtype cannot be 'int4': it must be auto or int8"
    ):
        LLM("nothing of this name", kv_dtype="int4")  # type: ignore[arg-type]


def test_more_choices_than_may_ever_be_open_are_refused_for_good() -> None:
    limits = EngineLimits(
        vocab_size=100, context_length=64, arena_tokens=64, max_open=4
    )
    with pytest.raises(ParameterError, match="n is 5, and at most 4"):
        limits.check(make_requests([1], SamplingParams(n=5))[0])
    assert limits.check(make_requests([1], SamplingParams(n=4, max_tokens=3))[0]) == 4


@pytest.mark.skipif(default_backend() != "none", reason="the kernels can run here")
def test_kernels_without_a_gpu_are_refused_with_what_serves_instead(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"attention cannot be .*no GPU.*reference"):
        LLM(
            save_tiny("llama", tmp_path / "llama"), kv_memory="4MB", attention="kernels"
        )
