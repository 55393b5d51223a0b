"""Drafts change how many steps an answer takes, and nothing in it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rvllm_local.engine.speculation.ngrams import NgramDrafter
from tests.support.drafters import FourEach, FreeTokens, Knowing, Rubbish, let_draft
from tests.support.heads import save_with_head
from tests.support.lora import save_adapter
from tests.support.overlapping import make_overlapping
from tests.support.scenarios import Answer, Engine, Scenario, assert_same, scenario
from tests.support.tiny import VOCAB_SIZE, save_tiny

# RVLLM_TEST_SCENARIOS tries more.
COUNT = int(os.environ.get("RVLLM_TEST_SCENARIOS", "5"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("drafts")
    model = save_tiny("llama", root / "model", seed=3)
    keys = ("self_attn.q_proj", "mlp.down_proj")
    return model, save_adapter(root / "adapter", model, keys)


def engine(world: tuple[Path, Path], **options: object) -> Engine:
    model, adapter = world
    return Engine(
        model,
        kv_memory=260_000,
        deterministic=True,
        self_check=False,
        adapters=(("tuned", str(adapter)),),
        prefill_chunk=64,
        **options,
    )


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return [scenario(seed, ("tuned",)) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def plain(world: tuple[Path, Path], scenarios: list[Scenario]) -> list[Answer]:
    """The answers without drafts. They had to make room for each other."""
    with engine(world, draft="off") as undrafted:
        answers = undrafted.run(scenarios)
        stats = undrafted.core.stats()
    assert stats["preemptions"] > 0
    assert stats["draft_tokens_accepted"] == stats["draft_tokens_rejected"] == 0
    return answers


@pytest.mark.parametrize("kind", ["n-grams", "rubbish", "right", "wrong"])
def test_answers_are_the_same_with_every_drafter(
    world: tuple[Path, Path],
    scenarios: list[Scenario],
    plain: list[Answer],
    kind: str,
) -> None:
    whole = []
    for item, answer in zip(scenarios, plain, strict=True):
        whole += [[*item.prompt, *tokens] for tokens in answer.tokens.values()]
    drafters = {
        "n-grams": NgramDrafter(),
        "rubbish": Rubbish(VOCAB_SIZE),
        "right": Knowing(whole, VOCAB_SIZE),
        "wrong": Knowing(whole, VOCAB_SIZE, off_by=1),
    }
    with engine(world, draft="ngram") as drafting:
        let_draft(drafting.core, drafters[kind])
        answers = drafting.run(scenarios)
        # Warm: the prompts' blocks are cached, and no rejected token is in them.
        again = drafting.run(scenarios[:2])
        stats = drafting.core.stats()
    for ours, theirs in zip(answers, plain, strict=True):
        assert_same(ours, theirs)
    for ours, theirs in zip(again, plain[:2], strict=True):
        assert_same(ours, theirs)
    assert stats["draft_tokens_accepted"] + stats["draft_tokens_rejected"] > 0


def test_answers_are_the_same_with_a_model_that_drafts(
    world: tuple[Path, Path],
    scenarios: list[Scenario],
    plain: list[Answer],
    tmp_path: Path,
) -> None:
    """It is another model: some of its drafts are right, and grammars cut others."""
    other = save_tiny("llama", tmp_path / "other", seed=4)
    with engine(world, draft=str(other)) as drafting:
        speculator = drafting.core._parts.speculator
        assert speculator is not None
        speculator.costs = FreeTokens()
        answers = drafting.run(scenarios)
        stats = drafting.core.stats()
    for ours, theirs in zip(answers, plain, strict=True):
        assert_same(ours, theirs)
    assert stats["draft_tokens_accepted"] + stats["draft_tokens_rejected"] > 0


# Bytes of blocks in which five scenarios have to make room for each other; GLM 5's two
# kinds of keys leave no size between that and one in which a prompt does not fit.
SCARCE = {
    "glm4_moe": 500_000,
    "deepseek_v3": 250_000,
    "glm_moe_dsa": 350_000,
    "qwen3_5": 350_000,
    "qwen3_next": 350_000,
}


Undrafted = Callable[[str], tuple[Path, list[Answer]]]


@pytest.fixture(scope="module")
def undrafted(tmp_path_factory: pytest.TempPathFactory) -> Undrafted:
    """By architecture a model with a head, and its answers without drafts, made once."""

    @functools.cache
    def made(arch: str) -> tuple[Path, list[Answer]]:
        folder = tmp_path_factory.mktemp(arch) / "model"
        save_with_head(arch, folder, seed=3)
        items = [scenario(seed) for seed in range(COUNT)]
        with scarce_engine(arch, folder, draft="off") as engine:
            answers = engine.run(items)
            assert engine.core.stats()["preemptions"] > 0 or arch == "glm_moe_dsa"
        return folder, answers

    return made


def scarce_engine(arch: str, folder: Path, draft: str) -> Engine:
    options = {"kv_memory": SCARCE[arch], "deterministic": True, "prefill_chunk": 64}
    return Engine(folder, draft=draft, **options)


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("glm4_moe", "head"),
        ("deepseek_v3", "head"),
        ("glm_moe_dsa", "head"),
        ("qwen3_5", "head"),
        ("qwen3_5", "right"),
        ("qwen3_5", "wrong"),
        ("qwen3_next", "head"),
    ],
)
def test_answers_are_the_same_with_a_model_that_has_a_head(
    arch: str, kind: str, undrafted: Undrafted
) -> None:
    """Qwen's have recurrent layers, whose states go back where a draft was wrong."""
    folder, expected = undrafted(arch)
    items = [scenario(seed) for seed in range(COUNT)]
    whole = []
    for item, answer in zip(items, expected, strict=True):
        whole += [[*item.prompt, *tokens] for tokens in answer.tokens.values()]
    with scarce_engine(arch, folder, draft="mtp") as drafting:
        speculator = drafting.core._parts.speculator
        assert speculator is not None
        speculator.costs = FreeTokens()
        speculator._length = FourEach()  # type: ignore[assignment]
        if kind != "head":
            off_by = int(kind == "wrong")
            let_draft(drafting.core, Knowing(whole, VOCAB_SIZE, off_by=off_by))
        answers = drafting.run(items)
        again = drafting.run(items[:2])
        stats = drafting.core.stats()
    for ours, theirs in zip(answers + again, expected + expected[:2], strict=True):
        assert_same(ours, theirs)
    if kind != "wrong":
        assert stats["draft_tokens_accepted"] > 0
    assert stats["draft_tokens_rejected"] > 0


@pytest.mark.parametrize("knows", [True, False])
def test_drafts_beside_steps_in_flight(world: tuple[Path, Path], knows: bool) -> None:
    """As on a device: a step is launched before the last was read, if nothing is drafted."""
    items = [replace(scenario(seed), cancelled=None) for seed in range(100, 104)]
    roomy = {"kv_memory": 4_000_000, "self_check": False, "deterministic": True}
    with Engine(world[0], **roomy) as undrafted:
        expected = undrafted.run(items)
    whole = []
    for item, answer in zip(items, expected, strict=True):
        whole += [[*item.prompt, *tokens] for tokens in answer.tokens.values()]
    with Engine(world[0], draft="ngram", **roomy) as drafting:
        runner = make_overlapping(drafting.core)
        let_draft(drafting.core, Knowing(whole if knows else [], VOCAB_SIZE))
        answers = drafting.run(items)
        stats = drafting.core.stats()
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.tokens == theirs.tokens  # its steps bring no log-probabilities
    if knows:
        assert stats["draft_tokens_accepted"] > 0
    else:
        assert runner.num_overlapped > 0


@pytest.mark.parametrize("deterministic", [True, False])
def test_auto_drafts_where_a_step_can_check_several_tokens(
    world: tuple[Path, Path], deterministic: bool
) -> None:
    common = {"kv_memory": 260_000, "self_check": False, "draft": "auto"}
    with Engine(world[0], deterministic=deterministic, **common) as drafting:
        assert drafting.core._parts.drafting == "n-grams"
    with Engine(world[0], max_rows=1, **common) as narrow:
        assert narrow.core._parts.drafting.startswith("off: with max_rows = 1")
