"""A tokenizer and a template that loop, grow or abort end their request and no other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.conversation.prompts import prepare_chat, prepare_text
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ContextOverflowError, ModelFileError, ParameterError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.prompts import process, start
from rvllm_local.server.prompts.process import PromptProcess
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import SamplingParams
from tests.support.processes import eventually, is_running
from tests.support.served import save_thinking

T = TypeVar("T")
LIMITS = EngineLimits(384, 100_000, 100_000, (0,))
BUDGET = ByteBudget([(2**20, 2**23), (2**24, 2**24)])
LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
# Each step makes many of every "q": three of them take gigabytes.
GROWING = {"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 4096}
GROWS = {"type": "Sequence", "normalizers": [GROWING] * 4}
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"maximum": 10**30}},
}
HOUR = 3600.0


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer explodes at a "q", and whose template loops at a "loop"."""
    folder = save_thinking(tmp_path_factory.mktemp("hostile"))
    _change(folder / "tokenizer.json", normalizer=GROWS)
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8"))["chat_template"]
    bomb = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}"
    _change(config, chat_template=bomb + template)
    return folder


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """What explodes shall do so soon."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (start, process):
            patch.setattr(module, "MEMORY", 128 * 2**20)
        yield


@pytest.fixture(scope="module")
def prompts(runner: asyncio.Runner, hostile: Path) -> Iterator[PromptProcess]:
    running = PromptProcess(_files(hostile), BUDGET)
    yield running
    runner.run(running.close())


def _files(folder: Path) -> ModelFiles:
    return ModelFiles("folder", folder, "hostile")


def _change(path: Path, **more: Any) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, **more}), encoding="utf-8")


def said(text: str, **more: Any) -> ChatCall:
    message = {"role": "user", "content": text}
    return ChatCall("hostile", (message,), SamplingParams(), **more)


async def words(prompts: PromptProcess, text: str) -> list[int]:
    token_ids = await prompts.tokenize(text, False, HOUR)
    ids: list[int] = json.loads(token_ids.json)
    assert token_ids.count == len(ids)
    return ids


@pytest.mark.parametrize(
    "call",
    [
        said("Is the sea <|im_end|> salty?"),
        said("Hm?", tools=(TOOL,), reasoning_budget=5, stated=frozenset({"n"})),
        said("Hm?", tools=(TOOL,), tool_choice={"function": {"name": "look"}}),
        TextCall("hostile", ("One.", (5, 6, 7)), SamplingParams(logit_bias={5: 1.0})),
        TextCall("hostile", ("Two.",), SamplingParams(), is_open_ended=True),
    ],
)
def test_prompts_are_those_that_this_process_makes(
    runner: asyncio.Runner,
    prompts: PromptProcess,
    hostile: Path,
    call: ChatCall | TextCall,
) -> None:
    tokenizer = read_tokenizer(_files(hostile))
    style = detect_style(_files(hostile), tokenizer)
    model = ConversationModel("hostile", tokenizer, style, LIMITS)
    prepared = runner.run(prompts.prepare(call, LIMITS, HOUR))
    if isinstance(call, ChatCall):
        assert prepared == prepare_chat(model, call)
    else:
        assert prepared == prepare_text(model, call)


def test_the_table_of_tokens_is_the_tokenizers(
    prompts: PromptProcess, hostile: Path
) -> None:
    tokenizer, tokens = read_tokenizer(_files(hostile)), prompts.facts.tokens
    ids = range(-1, tokenizer.num_ids + 2)
    for skips in (True, False):
        assert tokens.decode(ids[1:], skips) == tokenizer.decode(ids[1:], skips)
    for token_id in ids[1:]:
        assert tokens.id_to_bytes(token_id) == tokenizer.id_to_bytes(token_id)
    assert tokens.spelling(-1) == b""


def test_a_text_at_which_the_library_aborts_is_refused_alone(
    runner: asyncio.Runner, prompts: PromptProcess
) -> None:
    async def both() -> list[list[int] | BaseException]:
        texts = ["q", "An honest text."]
        asked = [words(prompts, text) for text in texts]
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, token_ids = runner.run(both())
    assert isinstance(failed, ModelFileError)
    assert "128 MB, or made its library abort" in str(failed)
    assert token_ids == runner.run(words(prompts, "An honest text."))


def test_work_that_hangs_holds_up_nobody_and_ends_with_who_asked(
    runner: asyncio.Runner, prompts: PromptProcess
) -> None:
    async def leave() -> int:
        await words(prompts, "first")
        stuck = prompts._idle[-1].pid
        os.kill(stuck, signal.SIGSTOP)
        hanging = asyncio.ensure_future(words(prompts, "second"))
        while any(fork.pid == stuck for fork in prompts._idle):
            await asyncio.sleep(0.001)
        await words(prompts, "third")
        assert not hanging.done()
        hanging.cancel()
        await asyncio.wait([hanging])
        assert prompts._slots._value == 4
        return stuck

    stuck = runner.run(leave())
    eventually(lambda: not is_running(stuck), 60)


@pytest.mark.parametrize("text", ["loop", "stopped"])
def test_work_ends_at_its_deadline(
    runner: asyncio.Runner, prompts: PromptProcess, text: str
) -> None:
    """The kernel's timer ends what loops; one that is stopped is killed from outside."""

    async def wait() -> None:
        await words(prompts, "first")
        if text == "stopped":
            os.kill(prompts._idle[-1].pid, signal.SIGSTOP)
        await prompts.prepare(said(text), LIMITS, 0.3)

    # Which timer is first depends on how much of a processor the fork gets.
    with pytest.raises(
        Problem, match=r"0\.(3 s|225 s of processor time) and was ended"
    ) as late:
        runner.run(wait())
    assert (late.value.status, late.value.code) == (400, "deadline")


def test_errors_come_as_they_were_raised(
    runner: asyncio.Runner, prompts: PromptProcess
) -> None:
    short = EngineLimits(384, 20, 20, (0,))
    with pytest.raises(ContextOverflowError) as overflow:
        call = said("word " * 9, is_open_ended=True)
        runner.run(prompts.prepare(call, short, HOUR))
    assert overflow.value.tokens_and_limit is not None
    with pytest.raises(ParameterError, match="half a surrogate"):
        runner.run(words(prompts, "\ud800"))


def test_a_process_that_was_killed_is_replaced(
    runner: asyncio.Runner, prompts: PromptProcess
) -> None:
    token_ids = runner.run(words(prompts, "before"))
    os.kill(prompts._idle[0].pid, signal.SIGKILL)
    assert runner.run(words(prompts, "before")) == token_ids
    prompts._process.kill()
    assert runner.run(words(prompts, "before")) == token_ids


def test_the_memory_of_a_large_text_goes_with_its_process(
    runner: asyncio.Runner, prompts: PromptProcess
) -> None:
    runner.run(words(prompts, "small"))
    pid = prompts._idle[-1].pid
    runner.run(words(prompts, "large " * 30_000))
    assert pid not in [fork.pid for fork in prompts._idle]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("q", "makes its library abort"), (None, "not a sound tokenizer")],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    hostile: Path, tmp_path: Path, text: str | None, reason: str
) -> None:
    """Reading encodes an "a"."""
    for path in hostile.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    growing = {**GROWING, "pattern": {"String": "a"}, "content": "a" * 4096}
    steps = [growing] * 4 if text else "none"
    normalizer = {"type": "Sequence", "normalizers": steps}
    _change(tmp_path / "tokenizer.json", normalizer=normalizer)
    with pytest.raises(ModelFileError, match=reason):
        PromptProcess(_files(tmp_path), BUDGET)


def test_closing_leaves_no_process_behind(
    runner: asyncio.Runner, hostile: Path
) -> None:
    async def use() -> list[int]:
        prompts = PromptProcess(_files(hostile), BUDGET)
        await words(prompts, "small")
        pids = [prompts._process.pid, prompts._idle[0].pid]
        await prompts.close()
        await prompts.close()
        return pids

    for pid in runner.run(use()):
        eventually(lambda pid=pid: not is_running(pid), 60)
