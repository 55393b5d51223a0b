"""Any sequence of what can happen to an engine: blocks are conserved, everything ends, and the tokens are the same.

Each machine below is one kind of engine: plain, int8, sliding windows, recurrent layers, one step in flight. RVLLM_TEST_EXAMPLES
sets how many sequences each tries.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup import choose_runner
from rvllm_local.engine.startup.build import build_core
from rvllm_local.engine.startup.selfcheck import make_rows_independent
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.models.loader import LoadedModel
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.continuation import NOTHING, Continuation
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent
from tests.support.overlapping import grammar_mask, make_overlapping
from tests.support.tiny import tiny_model
from tests.support.zoo import zoo_model

PROMPTS = tuple(
    tuple(np.random.default_rng(seed).integers(3, 60, length).tolist())
    for seed, length in enumerate((3, 33, 64, 65, 100, 150))
)
CROWDED = EngineOptions(
    kv_memory=400_000, max_rows=5, prefill_chunk=64, self_check=False, deterministic=True, cache="disk",
    disk_cache_bytes=10**8,
)  # fmt: skip
MOST_STEPS = 3000  # for everything that is open to end
EXAMPLES = int(os.environ.get("RVLLM_TEST_EXAMPLES", "0"))
STYLES = {
    "seeded": {},
    "filtered": {"top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.1,
    },
    "biased": {"logit_bias": {7: 4.0, 9: -8.0}},
    "greedy": {"temperature": 0.0},
    "grammar": {},
}


class Bytes:
    end_token_ids: frozenset[int] = frozenset()

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id % 128])


class Alternating:
    """A grammar: an even token, then an odd one, and so on. It has a state, so that losing a token would show."""

    is_stopped = is_accepting = is_thinking = False

    def __init__(self, vocab_size: int) -> None:
        self._masks = [
            grammar_mask(set(range(first, vocab_size, 2)), vocab_size)
            for first in (0, 1)
        ]
        self._vocab_size, self._count = vocab_size, 0

    def copy(self) -> Alternating:
        twin = Alternating(self._vocab_size)
        twin._count = self._count
        return twin

    def forced(self) -> list[int]:
        return []

    def forced_compactly(self) -> list[int]:
        return []

    def laid_out(self) -> Continuation:
        return NOTHING

    def after_value(self) -> Continuation:
        return NOTHING

    def allows(self, token_id: int) -> bool:
        return token_id % 2 == self._count % 2

    def mask_into(self, row: np.ndarray) -> None:
        row[:] = self._masks[self._count % 2]

    def advance(self, token_id: int) -> None:
        assert token_id % 2 == self._count % 2
        self._count += 1


@cache
def loaded(arch: str) -> LoadedModel:
    model, config = (
        zoo_model(arch)
        if arch in ("qwen3_next", "mamba2")
        else tiny_model(arch, seed=2)
    )
    return LoadedModel(
        model, config, arch, arch, 512, config["vocab_size"], (), 0, f"tiny {arch}"
    )


def params(max_tokens: int, seed: int, n: int, style: str) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 1.0, "seed": seed, "n": n, "ignore_eos": True,
                             **STYLES[style]})  # fmt: skip


def add(
    core: EngineCore,
    prompt: tuple[int, ...],
    asked: SamplingParams,
    answers: Answers,
    style: str,
    priority: int = 0,
) -> str:
    grammar = "alternating" if style == "grammar" else None
    requests = make_requests(prompt, asked, priority=priority, grammar=grammar)
    for request in requests:
        core.add(
            request, answers, Alternating(core.limits.vocab_size) if grammar else None
        )
    return requests[0].request_id


class Answers:
    """A sink for the choices of one request."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, FinishReason] = {}

    def __call__(self, event: StreamEvent) -> None:
        assert event.index not in self.ends, "an event after the last"
        self.tokens.setdefault(event.index, []).extend(event.token_ids)
        if event.finish_reason is not None:
            self.ends[event.index] = event.finish_reason


@cache
def core_of_one(arch: str, kv_dtype: str) -> EngineCore:
    """An engine with one row at a time, and nothing cached between them."""
    options = EngineOptions(
        kv_memory=4_000_000, max_rows=1, prefill_chunk=512, self_check=False, deterministic=True, cache="off",
        kv_dtype=kv_dtype,
    )  # fmt: skip
    return build_core(loaded(arch), Bytes(), options)


@cache
def alone(
    arch: str,
    kv_dtype: str,
    prompt: tuple[int, ...],
    max_tokens: int,
    seed: int,
    style: str,
) -> tuple[int, ...]:
    """The tokens of one choice, with nobody else there."""
    core, answers = core_of_one(arch, kv_dtype), Answers()
    add(core, prompt, params(max_tokens, seed, 1, style), answers, style)
    while core.has_work:
        core.step()
    core.check_integrity()
    return tuple(answers.tokens[0])


@pytest.fixture(autouse=True, scope="module")
def rows_proven_once() -> Iterator[None]:
    """The rows of a deterministic call are a matter of the model and its KV format.

    Each is proven at its first start here; a hundred starts follow.
    """
    proven: dict[tuple[int, KVLayout], int] = {}

    def proven_once(
        runner: ModelRunner, kv: KVTables, vocab_size: int, *, tries_fewer: bool
    ) -> None:
        key = (id(runner._model), runner.layout)
        if key in proven:
            runner.make_deterministic(proven[key])
            return
        make_rows_independent(runner, kv, vocab_size, tries_fewer=tries_fewer)
        assert runner.row_group is not None and runner.pads_groups
        proven[key] = runner.row_group

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose_runner, "make_rows_independent", proven_once)
        yield


class EngineMachine(RuleBasedStateMachine):
    """One engine, and everything that may happen to it."""

    arch = "llama"
    options = CROWDED
    overlaps = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.core = self.open()
        self.asked: dict[str, tuple[tuple[int, ...], int, int, int, str]] = {}
        self.answers: dict[str, Answers] = {}
        self.lost: set[str] = set()

    def open(self) -> EngineCore:
        core = build_core(
            loaded(self.arch),
            Bytes(),
            replace(self.options, cache_dir=self.folder.name),
        )
        if self.overlaps:
            make_overlapping(core)
        return core

    def ask(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        seed: int,
        n: int,
        style: str,
        priority: int,
    ) -> None:
        answers = Answers()
        name = add(
            self.core,
            prompt,
            params(max_tokens, seed, n, style),
            answers,
            style,
            priority,
        )
        self.asked[name], self.answers[name] = (
            (prompt, max_tokens, seed, n, style),
            answers,
        )

    @rule(
        prompt=st.integers(0, len(PROMPTS) - 1),
        max_tokens=st.sampled_from((1, 5, 40, 70)),
        seed=st.integers(0, 2),
        style=st.sampled_from(sorted(STYLES)),
        priority=st.integers(-1, 1),
    )
    def submit(
        self, prompt: int, max_tokens: int, seed: int, style: str, priority: int
    ) -> None:
        self.ask(PROMPTS[prompt], max_tokens, seed, 1, style, priority)

    @rule(
        prompt=st.integers(0, len(PROMPTS) - 1),
        seed=st.integers(0, 2),
        style=st.sampled_from(sorted(STYLES)),
    )
    def fork(self, prompt: int, seed: int, style: str) -> None:
        """Choices of one request share its prompt; what the prompt fills only partly of a block is copied."""
        self.ask(PROMPTS[prompt], 40, seed, 3, style, 0)

    @rule(which=st.integers(0, 20), length=st.integers(1, 60), seed=st.integers(0, 1))
    def branch(self, which: int, length: int, seed: int) -> None:
        """A request that begins with another one's prompt and some of its answer, then goes its own way."""
        if self.asked:
            name = list(self.asked)[which % len(self.asked)]
            begun = (*self.asked[name][0], *self.answers[name].tokens.get(0, ()))
            self.ask(
                (*begun[: len(begun) - seed], 5, 6, 7)[:180],
                length,
                seed,
                1,
                "seeded",
                0,
            )

    @rule(count=st.integers(1, 40))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work:
                self.core.step()

    @rule(which=st.integers(0, 20))
    def cancel(self, which: int) -> None:
        if self.asked:
            self.core.cancel(list(self.asked)[which % len(self.asked)])

    @rule(share=st.sampled_from((0.3, 1.0)))
    def evict(self, share: float) -> None:
        """Somebody takes blocks for a moment: cached ones are evicted, the oldest first."""
        for pool in self.core._kv.pools:
            pool.release(pool.allocate(int(share * pool.num_free)))

    @rule()
    def forget(self) -> None:
        self.core._kv_cache.forget_prefixes()

    @rule()
    def spill(self) -> None:
        while self.core.has_idle_work:
            self.core.idle()

    @rule()
    def restart(self) -> None:
        """An orderly end: open requests end with an error, and the next engine restores prefixes from disk."""
        self.core.close("closed")
        self.lost |= set(self.asked)
        self.core = self.open()

    @rule()
    def crash(self) -> None:
        """The engine is gone from one moment to the next; nobody tidies up."""
        self.lost |= set(self.asked)
        for name in self.asked:
            self.answers[name].ends = dict.fromkeys(range(3), FinishReason.ERROR)
        if self.core._kv_cache.store is not None:
            self.core._kv_cache.store.close()  # as the end of a process does, the writer's thread ends
        self.core = self.open()

    @rule()
    def fail(self) -> None:
        self.core.fail_all("a step failed")
        self.lost |= set(self.asked)

    @invariant()
    def blocks_are_conserved(self) -> None:
        self.core.check_integrity()

    def teardown(self) -> None:
        steps = 0
        while self.core.has_work:
            self.core.step()
            steps += 1
            assert steps < MOST_STEPS, "somebody starves"
        self.core.check_integrity()
        for name in self.asked.keys() - self.lost:
            self.check(name)
        self.core.close("done")
        self.folder.cleanup()

    def check(self, name: str) -> None:
        """Every choice ended, with the tokens that it has alone, and its report says how."""
        prompt, max_tokens, seed, n, style = self.asked[name]
        answers = self.answers[name]
        assert set(answers.ends) == set(range(n)), "a choice did not end"
        for index, reason in answers.ends.items():
            expected = alone(
                self.arch,
                self.options.kv_dtype,
                prompt,
                max_tokens,
                seed + index,
                style,
            )
            found = tuple(answers.tokens.get(index, ()))
            if reason is FinishReason.CANCELLED:
                assert found == expected[: len(found)]
            else:
                assert (reason, found) == (FinishReason.LENGTH, expected)
        reports = {report.index: report for report in self.core.explain(name)}
        assert {
            index: report.finish_reason for index, report in reports.items()
        } == answers.ends
        for index, report in reports.items():
            assert report.output_tokens == len(answers.tokens.get(index, ()))
            assert (
                report.cached_from_disk
                <= report.cached_tokens
                <= report.prompt_tokens
                == len(prompt)
            )


def examples(count: int) -> settings:
    return settings(
        max_examples=EXAMPLES or count, stateful_step_count=24, deadline=None
    )


class QuantizedMachine(EngineMachine):
    options = replace(CROWDED, kv_memory=100_000, kv_dtype="int8")


class WindowedMachine(EngineMachine):
    arch = "gemma3_text"
    options = replace(CROWDED, kv_memory=900_000)


class RecurrentMachine(EngineMachine):
    arch = "qwen3_next"
    options = replace(CROWDED, kv_memory=650_000)


class OverlappingMachine(EngineMachine):
    overlaps = True


class OverlappingWindowedMachine(EngineMachine):
    arch, overlaps = "gpt_oss", True
    options = replace(CROWDED, kv_memory=700_000)


class OverlappingRecurrentMachine(EngineMachine):
    arch, overlaps = "qwen3_next", True
    options = replace(CROWDED, kv_memory=650_000)


TestEngine = EngineMachine.TestCase
TestQuantized = QuantizedMachine.TestCase
TestWindowed = WindowedMachine.TestCase
TestRecurrent = RecurrentMachine.TestCase
TestOverlapping = OverlappingMachine.TestCase
TestOverlappingWindowed = OverlappingWindowedMachine.TestCase
TestOverlappingRecurrent = OverlappingRecurrentMachine.TestCase
TestEngine.settings = examples(4)
TestQuantized.settings = TestWindowed.settings = TestRecurrent.settings = (
    TestOverlappingRecurrent.settings
) = examples(2)
TestOverlapping.settings = TestOverlappingWindowed.settings = examples(2)
