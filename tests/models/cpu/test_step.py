"""A whole step through onnxruntime computes what the model's own definition computes."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.probe import plain_caches, probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables, SequenceTables
from rvllm_local.models.cpu import step as step_module
from rvllm_local.models.cpu.layers import pack_layers
from rvllm_local.models.cpu.step import CpuStep, build_step
from rvllm_local.models.cpu.stored import keep_stored
from rvllm_local.models.cpu.structure import find_decoder
from tests.support.tiny import VOCAB_SIZE, tiny_model

BLOCKS = 40
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
EXACT, ROUNDED = 1e-4, 0.1  # of the largest logit: plain weights, and int8 activations


@dataclass
class Subject:
    step: CpuStep
    arenas: list[Arena]
    layout: KVLayout
    kv: KVTables

    def sequence(self, tokens: list[int], chunks: list[int]) -> SequenceTables:
        tables, start = self.kv.new_sequence(), 0
        self.kv.grow(tables, len(tokens) + 4)
        for size in chunks:
            geometry = call_geometry(self.layout, [tables], [start], size)
            self.step.hidden(geometry, np.array([tokens[start : start + size]]))
            start += size
        return tables

    def logits(
        self, rows: list[SequenceTables], positions: list[int], tokens: list[int]
    ) -> np.ndarray:
        geometry = call_geometry(self.layout, rows, positions, 1)
        return self.step.logits(geometry, np.array(tokens))


def quantized(model: nn.Module, bits: int | None) -> None:
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        keep_stored(model)


def subject(model: nn.Module) -> Subject:
    install(model)
    layout = probe_layout(model)
    arenas = [Arena(shape, BLOCKS) for shape in layout.groups]
    decoder = find_decoder(model)
    assert decoder is not None
    step = build_step(decoder, layout, arenas)
    assert step is not None
    return Subject(step, arenas, layout, KVTables(layout, [BLOCKS] * len(arenas)))


def plain_logits(model: nn.Module, tokens: list[int]) -> np.ndarray:
    logits = model(mx.array([tokens]), cache=plain_caches(model))
    return np.array(logits[0])


def tokens_of(count: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(token) for token in random.integers(0, VOCAB_SIZE, count)]


def distance(computed: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(computed - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize(("bits", "bound"), [(None, EXACT), (4, ROUNDED), (8, ROUNDED)])
def test_prompts_in_chunks_and_rows_together(
    arch: str, bits: int | None, bound: float
) -> None:
    model, _ = tiny_model(arch)
    quantized(model, bits)
    lengths, prompts = (71, 9), [tokens_of(71, 1), tokens_of(9, 2)]
    expected = [plain_logits(model, prompt) for prompt in prompts]
    tiny = subject(model)
    chunks = [[40, 30], [8]]
    rows = [tiny.sequence(*pair) for pair in zip(prompts, chunks, strict=True)]
    computed = tiny.logits(
        rows, [length - 1 for length in lengths], [prompt[-1] for prompt in prompts]
    )
    for row, logits in enumerate(expected):
        assert distance(computed[row], logits[-1]) < bound
    # The same rows alone; windows have slid past the first tokens of the longer one.
    for row, prompt in enumerate(prompts):
        alone = tiny.logits([rows[row]], [len(prompt) - 1], [prompt[-1]])
        assert distance(alone[0], expected[row][-1]) < bound


def test_a_model_with_other_parts_has_no_step() -> None:
    for arch in ("gemma2", "gpt_oss", "mixtral"):
        assert find_decoder(tiny_model(arch)[0]) is None


@pytest.mark.parametrize("arch", ["qwen3", "qwen2", "gemma2", "olmo2"])
def test_layer_by_layer_any_definition_keeps_its_logits(arch: str) -> None:
    model, _ = tiny_model(arch)
    quantized(model, 8)
    prompt = tokens_of(20, 3)
    expected = plain_logits(model, prompt)
    pack_layers(model)
    assert distance(plain_logits(model, prompt)[-1], expected[-1]) < ROUNDED


def test_experts_stay_in_float32_and_the_reason_is_given() -> None:
    model, _ = tiny_model("mixtral")
    nn.quantize(model, group_size=32, bits=4)
    reasons = keep_stored(model)
    assert len(reasons) == 1 and "QuantizedSwitchLinear" in reasons[0]
    prompt = tokens_of(12, 4)
    expected = plain_logits(model, prompt)
    pack_layers(model)
    assert distance(plain_logits(model, prompt)[-1], expected[-1]) < ROUNDED


def test_sessions_with_other_layers_than_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_module, "_MOST_BYTES", 1)  # a session for each layer
    model, _ = tiny_model("mistral")
    prompt = tokens_of(12, 5)
    expected = plain_logits(model, prompt)
    tiny = subject(model)
    row = tiny.sequence(prompt, [11])
    computed = tiny.logits([row], [11], [prompt[-1]])
    assert distance(computed[0], expected[-1]) < EXACT
