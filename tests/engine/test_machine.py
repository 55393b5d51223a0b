"""Any sequence of what can happen to an engine: blocks are conserved, everything ends, and the tokens are the same."""

from __future__ import annotations

import tempfile
from functools import cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rvllm_local.client import make_requests
from rvllm_local.engine.build import build_core
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.options import EngineOptions
from rvllm_local.models.loader import LoadedModel
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent
from tests.support.tiny import tiny_model

PROMPTS = tuple(
    tuple(np.random.default_rng(seed).integers(3, 60, length).tolist())
    for seed, length in enumerate((3, 33, 64, 65, 100, 150))
)
CROWDED = EngineOptions(
    kv_memory=400_000, max_rows=5, prefill_chunk=64, self_check=False, deterministic=True, cache="disk",
    disk_cache_bytes=10**8,
)  # fmt: skip
MOST_STEPS = 3000  # for everything that is open to end


class Bytes:
    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id % 128])


@cache
def loaded() -> LoadedModel:
    model, config = tiny_model("llama", seed=2)
    return LoadedModel(model, config, "llama", "llama", 512, config["vocab_size"], (), 0, "tiny")


def params(max_tokens: int, seed: int, n: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=seed, n=n, ignore_eos=True)


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
def alone(prompt: int, max_tokens: int, seed: int) -> tuple[int, ...]:
    """The tokens of one choice in an engine of its own, with nothing cached."""
    options = EngineOptions(
        kv_memory=4_000_000, max_rows=1, prefill_chunk=512, self_check=False, deterministic=True, cache="off"
    )
    core, answers = build_core(loaded(), Bytes(), options), Answers()
    core.add(make_requests(PROMPTS[prompt], params(max_tokens, seed, 1))[0], answers)
    while core.has_work:
        core.step()
    core.close("done")
    return tuple(answers.tokens[0])


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.core = self.open()
        self.asked: dict[str, tuple[int, int, int, int]] = {}
        self.answers: dict[str, Answers] = {}
        self.lost: set[str] = set()

    def open(self) -> EngineCore:
        from dataclasses import replace

        return build_core(loaded(), Bytes(), replace(CROWDED, cache_dir=self.folder.name))

    @rule(
        prompt=st.integers(0, len(PROMPTS) - 1),
        max_tokens=st.sampled_from((1, 5, 40, 90)),
        seed=st.integers(0, 2),
        n=st.sampled_from((1, 1, 3)),
        priority=st.integers(-1, 1),
    )
    def submit(self, prompt: int, max_tokens: int, seed: int, n: int, priority: int) -> None:
        requests = make_requests(PROMPTS[prompt], params(max_tokens, seed, n), priority=priority)
        name = requests[0].request_id
        self.asked[name], self.answers[name] = (prompt, max_tokens, seed, n), Answers()
        for request in requests:
            self.core.add(request, self.answers[name])

    @rule(count=st.integers(1, 40))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work:
                self.core.step()

    @rule(which=st.integers(0, 20))
    def cancel(self, which: int) -> None:
        if self.asked:
            name = list(self.asked)[which % len(self.asked)]
            self.core.cancel(name)

    @rule()
    def evict(self) -> None:
        self.core._residence.forget_prefixes()

    @rule()
    def spill(self) -> None:
        while self.core.has_idle_work:
            self.core.idle()

    @rule()
    def restart(self) -> None:
        """An orderly end: open requests end with an error, the next engine is warm."""
        self.core.close("closed")
        self.lost |= set(self.asked)
        self.core = self.open()

    @rule()
    def crash(self) -> None:
        """The engine is gone from one moment to the next; nobody tidies up."""
        self.lost |= set(self.asked)
        for name in self.asked:
            self.answers[name].ends = dict.fromkeys(range(3), FinishReason.ERROR)
        self.core._residence.store.close()  # as the end of a process does, the writer's thread ends
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
        for name, (prompt, max_tokens, seed, n) in self.asked.items():
            answers = self.answers[name]
            if name in self.lost:
                continue
            assert set(answers.ends) == set(range(n)), "a choice did not end"
            for index, reason in answers.ends.items():
                expected = alone(prompt, max_tokens, seed + index)
                found = tuple(answers.tokens.get(index, ()))
                if reason is FinishReason.CANCELLED:
                    assert found == expected[: len(found)]
                else:
                    assert (reason, found) == (FinishReason.LENGTH, expected)
        self.core.close("done")
        self.folder.cleanup()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
