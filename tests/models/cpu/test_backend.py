"""A packed step is called as the engine calls a model, whatever the rows' lengths."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.seam import make_caches
from rvllm_local.memory.tables import KVTables, SequenceTables
from rvllm_local.models.cpu import backend, step
from rvllm_local.models.cpu.backend import StepBackend, StepModel
from tests.models.cpu.test_step import (
    EXACT,
    Subject,
    distance,
    plain_logits,
    subject,
    tokens_of,
)
from tests.support.tiny import tiny_model


class Engine:
    """The calls that an engine makes, over a tiny model with plain weights."""

    def __init__(self) -> None:
        self.module, _ = tiny_model("mistral")
        self.tiny: Subject = subject(tiny_model("mistral")[0])
        self.kv: KVTables = self.tiny.kv
        arenas = self.tiny.arenas
        self.backend = StepBackend(arenas)
        self.model = StepModel(self.tiny.step, arenas)

    def call(
        self, rows: list[SequenceTables], positions: list[int], tokens: list[list[int]]
    ) -> object:
        geometry = call_geometry(self.tiny.layout, rows, positions, len(tokens[0]))
        caches = make_caches(self.tiny.layout, self.backend, geometry, dense=False)
        return self.model(mx.array(tokens), cache=caches)

    def sequence(self, tokens: list[int]) -> SequenceTables:
        tables = self.kv.new_sequence()
        self.kv.grow(tables, len(tokens))
        self.call([tables], [0], [tokens[:-1]])
        return tables


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.mark.parametrize("lengths", [(9, 12), (12, 9), (20, 31, 25)])
def test_rows_of_like_length_keep_their_tokens(
    engine: Engine, lengths: tuple[int, ...]
) -> None:
    """They are one call, in whatever order their lengths stand."""
    prompts = [tokens_of(length, length) for length in lengths]
    rows = [engine.sequence(prompt) for prompt in prompts]
    positions = [length - 1 for length in lengths]
    logits = engine.call(rows, positions, [[prompt[-1]] for prompt in prompts])
    for row, prompt in enumerate(prompts):
        expected = plain_logits(engine.module, prompt)[-1]
        assert distance(np.array(logits)[row, 0], expected) < EXACT


@pytest.mark.parametrize("most_gathered", [32 << 20, 1])
def test_a_call_takes_several_tokens_of_a_sequence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, most_gathered: int
) -> None:
    """Each as a row, whether one call has room for them or none for two."""
    monkeypatch.setattr(backend, "_MOST_GATHERED", most_gathered)
    prompts = [tokens_of(40, 1), tokens_of(33, 2)]
    rows = [engine.sequence(prompts[0][:36]), engine.sequence(prompts[1])]
    for row, prompt in zip(rows, prompts, strict=True):
        engine.kv.grow(row, len(prompt))
    tables = [rows[0]] * 5 + [rows[1]]
    tokens = [[token] for token in prompts[0][35:]] + [[prompts[1][-1]]]
    logits = engine.call(tables, [35, 36, 37, 38, 39, 32], tokens)
    drafted = plain_logits(engine.module, prompts[0])[35:]
    alone = plain_logits(engine.module, prompts[1])[-1:]
    for row, expected in enumerate([*drafted, *alone]):
        assert distance(np.array(logits)[row, 0], expected) < EXACT


def test_rows_of_very_different_lengths_keep_their_places(engine: Engine) -> None:
    prompts = [tokens_of(length, length) for length in (9, 250, 12, 200, 10)]
    expected = [plain_logits(engine.module, prompt)[-1] for prompt in prompts]
    rows = [engine.sequence(prompt) for prompt in prompts]
    positions = [len(prompt) - 1 for prompt in prompts]
    logits = engine.call(rows, positions, [[prompt[-1]] for prompt in prompts])
    assert isinstance(logits, mx.array)
    for row, theirs in enumerate(expected):
        assert distance(np.array(logits)[row, -1], theirs) < EXACT


def test_rows_share_a_call_only_as_far_as_their_contexts_fit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_MOST_GATHERED", 1)  # each row by itself
    prompts = [tokens_of(40, seed) for seed in range(3)]
    expected = [plain_logits(engine.module, prompt)[-1] for prompt in prompts]
    rows = [engine.sequence(prompt) for prompt in prompts]
    logits = engine.call(rows, [39] * 3, [[prompt[-1]] for prompt in prompts])
    for row, theirs in enumerate(expected):
        assert distance(np.array(logits)[row, -1], theirs) < EXACT


def test_long_chunks_go_in_parts_and_their_logits_can_be_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_MOST_SCORES", 1)  # 64 tokens a call
    prompt = tokens_of(150, 5)
    tables = engine.kv.new_sequence()
    engine.kv.grow(tables, len(prompt))
    deferred = engine.call([tables], [0], [prompt])
    logits = deferred[0, 100:].astype(mx.float32)  # type: ignore[index]
    expected = plain_logits(engine.module, prompt)
    assert distance(np.array(logits), expected[100:]) < EXACT


def test_blocks_can_be_saved_and_brought_back(engine: Engine) -> None:
    prompt = tokens_of(40, 6)
    expected = plain_logits(engine.module, prompt)[-1]
    tables = engine.sequence(prompt)
    for group, table in enumerate(tables.groups):
        saved = engine.backend.save_blocks(group, table.block_ids)
        blank = [bytes(len(saved[0]))] * len(saved)
        engine.backend.load_blocks(group, table.block_ids, blank)
        engine.backend.load_blocks(group, table.block_ids, saved)
    logits = engine.call([tables], [39], [[prompt[-1]]])
    assert distance(np.array(logits)[0, -1], expected) < EXACT
