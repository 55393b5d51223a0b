"""Damaged and hostile models end in typed errors; `benchmarks/hostile.py` has thousands.

Here are a few of each kind, without a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from benchmarks.hostile_models import MAKERS, hostile_format
from rvllm_local.conversation.calls import ChatCall
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ModelFileError, ParameterError, RvllmError
from rvllm_local.models.describe import describe
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.problems import Problem, problem_of
from rvllm_local.server.models.context import context_of
from rvllm_local.server.prompts.process import PromptProcess
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.types import SamplingParams

LIMITS = EngineLimits(384, 2048, 2048, (0,))
CALL = ChatCall("m", ({"role": "user", "content": "Hm?"},), SamplingParams())


def read_or_refuse(files: ModelFiles) -> None:
    """What a server does with a model's files before it starts a process."""
    with contextlib.suppress(RvllmError):
        describe(files)
    context_of(files, EngineOptions())


@pytest.mark.parametrize("number", range(60))
def test_a_damaged_gguf_header(tiny: Path, tmp_path: Path, number: int) -> None:
    make = MAKERS["gguf headers"]
    path = make(tiny, tmp_path / "m", random.Random(f"header {number}"))
    files = ModelFiles("gguf", path, "m")
    read_or_refuse(files)


@pytest.mark.parametrize("number", range(40))
def test_a_changed_configuration(tiny: Path, tmp_path: Path, number: int) -> None:
    make = MAKERS["configurations"]
    folder = make(tiny, tmp_path / "m", random.Random(f"configuration {number}"))
    files = ModelFiles("folder", folder, "m")
    read_or_refuse(files)


@pytest.mark.parametrize("kind", ["tokenizers", "templates"])
@pytest.mark.parametrize("number", range(2))
def test_texts_that_mean_harm_end_with_a_typed_refusal(
    tiny: Path, tmp_path: Path, kind: str, number: int
) -> None:
    folder = MAKERS[kind](tiny, tmp_path / "m", random.Random(f"{kind} {number}"))

    async def use() -> None:
        files = ModelFiles("folder", folder, "m")
        prompts = PromptProcess(files, ByteBudget([(2**20, 2**20)]))
        try:
            await prompts.prepare(CALL, LIMITS, 3.0)
        finally:
            await prompts.close()

    try:
        asyncio.run(use())
    except (RvllmError, Problem) as error:
        problem = problem_of(error)
        assert problem.status == 400
        assert problem.message


@pytest.mark.parametrize("number", range(40))
def test_a_format_that_means_harm(number: int) -> None:
    """What can be written as a grammar is tried later, in a process of its own."""
    form = hostile_format(random.Random(f"format {number}"))
    try:
        assert grammar_for_format(form)
    except (ParameterError, ModelFileError) as error:
        assert str(error)
