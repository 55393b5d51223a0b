"""The kernel back end under real models: the very text that Metal compiles, executed by the emulator.

The engine's own self-check is the judge: logits through the kernels against plain mlx-lm's.
"""

from __future__ import annotations

import mlx.core as mx
import pytest

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.residual import install_joined_adds
from rvllm_local.attention.rotation import install_rotations
from rvllm_local.attention.seam import install
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.selfcheck import find_agreeing_runner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import AddNorm
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.models.adapted import adapt
from rvllm_local.models.adapter_files import Adapter, LowRank
from tests.emulator import Emulator
from tests.support.tiny import tiny_model
from tests.support.zoo import zoo_model


def served(
    architecture: str, *, steps: bool, copies: bool = False
) -> tuple[ModelRunner, KernelBackend]:
    """The runner that the self-check chooses; with `steps` decode calls go through the step that a GPU compiles."""
    model, config = (
        zoo_model(architecture)
        if architecture in ("qwen3_next", "lfm2")
        else tiny_model(architecture, seed=3)
    )
    paged = install(model)
    layout = probe_layout(model)
    blocks = layout.split_budget(2_000_000, context=128, max_rows=2, chunk=32)
    emulator = Emulator()
    backend = KernelBackend(
        [Arena(shape, n) for shape, n in zip(layout.groups, blocks)], launcher=emulator
    )
    kv = KVTables(layout, blocks)

    joined = (
        install_joined_adds(model, AddNorm(launcher=emulator, counter=backend.counter))
        if steps
        else None
    )

    def make(mode: RunMode) -> ModelRunner:
        step = CompiledDecode(
            model,
            layout,
            backend,
            rotates=mode.rotates,
            joined=joined if mode.joins else None,
            compile_step=lambda call: call,
            copies=copies,
        )
        compiled = step if steps and mode.batched and not mode.dense else None
        return ModelRunner(model, layout, backend, mode, config["vocab_size"], compiled)

    rotates = steps and install_rotations(model) > 0
    runner = find_agreeing_runner(
        model,
        make,
        kv,
        paged=paged,
        vocab_size=config["vocab_size"],
        rotates=rotates,
        joins=joined is not None,
    )
    assert kv.blocks_free == kv.blocks_total
    return runner, backend


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "gpt_oss"])
def test_kernels_agree_with_mlx_lm(architecture: str) -> None:
    runner, backend = served(architecture, steps=False)
    assert runner.mode == RunMode(batched=True, dense=False)
    assert backend.num_dispatches > 0


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "gemma3_text", "qwen3", "gpt_oss", "gear"]
)
def test_steps_of_few_launches(architecture: str) -> None:
    """Writing, rotating and attending is one launch; so is adding to the residual stream and norming it."""
    runner, backend = served(architecture, steps=True)
    joins = (
        architecture != "gemma3_text"
    )  # which adds in a compiled function of its own
    assert runner.mode == RunMode(batched=True, dense=False, rotates=True, joins=joins)
    before = backend.counter.snapshot()
    tables = KVTables(runner.layout, [4] * len(runner.layout.groups))
    sequence = tables.new_sequence()
    tables.grow(sequence, 1)
    mx.eval(runner.decode([DecodeRow(sequence, 0, 1)]))
    assert set(backend.counter.since(before)) == {"rope_table", "paged_decode"} | (
        {"add_norm"} if joins else set()
    )


def test_a_step_begins_with_copies_of_what_the_host_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of each group's descriptor; the self-check has seen the right logits."""
    runner, _ = served("gemma3_text", steps=True, copies=True)
    copied: list[mx.array] = []
    maximum = mx.maximum

    def noting(one: mx.array, other: mx.array) -> mx.array:
        if one is other:
            copied.append(one)
        return maximum(one, other)

    monkeypatch.setattr(mx, "maximum", noting)
    groups = len(runner.layout.groups)
    tables = KVTables(runner.layout, [4] * groups)
    sequence = tables.new_sequence()
    tables.grow(sequence, 1)
    mx.eval(runner.decode([DecodeRow(sequence, 0, 1)]))
    assert [one.dtype for one in copied] == [mx.int32] * groups


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_call_takes_several_tokens_of_a_sequence(
    architecture: str, steps: bool
) -> None:
    """Each sees those before it, over a block's end and beside another sequence."""
    runner, backend = served(architecture, steps=steps)
    assert runner.verifies
    kv = KVTables(runner.layout, [8] * len(runner.layout.groups))
    prompt, answer = [7, 3, 5] * 10, [11, 2, 9, 30]
    tables = [kv.new_sequence() for _ in range(3)]
    for row in tables:
        kv.grow(row, 40)
        runner.prefill(TokenChunk(row, 0, prompt))
    alone, together, other = tables
    one_by_one = []
    for position, token in enumerate(answer, start=len(prompt)):
        one_by_one.append(runner.decode([DecodeRow(alone, position, token)]))
    expected = mx.concatenate(one_by_one)
    rows = [DecodeRow(other, len(prompt), 4)]
    for position, token in enumerate(answer, start=len(prompt)):
        rows.append(DecodeRow(together, position, token))
    before = backend.counter.snapshot()
    logits = runner.decode(rows)[1:]
    assert mx.allclose(logits, expected, rtol=1e-4, atol=1e-4).item()
    launches = backend.counter.since(before)
    assert launches["kv_write"] == launches["paged_decode"] > 0


def test_a_compiled_step_takes_recurrent_states() -> None:
    """Two rows beside a padding row; a kernel writes, rotates and attends in one launch."""
    logits, launches = [], []
    for steps in (False, True):
        runner, backend = served("lfm2", steps=steps)
        kv = KVTables(runner.layout, [8] * len(runner.layout.groups))
        rows = [kv.new_sequence() for _ in range(3)]
        for row, prompt in zip(rows, ([5, 9, 2], [7] * 31, [4] * 8), strict=True):
            kv.grow(row, 40)
            runner.prefill(TokenChunk(row, 0, prompt))
        found = []
        for step in range(3):
            positions = (3 + step, 31 + step, 8 + step)
            call = [
                DecodeRow(row, position, 11 + step)
                for row, position in zip(rows, positions, strict=True)
            ]
            before = backend.counter.snapshot()
            found.append(runner.decode(call))
            mx.eval(found[-1])
            if step == 0:  # a step that is not compiled here would be counted twice
                launches.append(backend.counter.since(before))
        logits.append(mx.stack(found))
        if steps:
            assert runner.mode == RunMode(
                batched=True, dense=False, rotates=True, joins=True
            )
    assert mx.allclose(logits[0], logits[1], atol=1e-3).item()
    layers = 2  # with attention
    assert launches[0] == {"kv_write": layers, "paged_decode": layers}
    assert launches[1]["paged_decode"] == layers
    assert "kv_write" not in launches[1]


def test_a_step_with_states_and_adapters_is_traced_once_a_shape() -> None:
    """MLX's own compile: the same graph serves other states and other adapters."""
    model, _ = zoo_model("lfm2")
    install(model)
    layout = probe_layout(model)
    blocks = [8] * len(layout.groups)

    def launch(dispatch: Dispatch) -> list[mx.array]:
        return [
            mx.zeros(shape, dtype=dtype)
            for shape, dtype in zip(dispatch.shapes, dispatch.dtypes, strict=True)
        ]

    choice = adapt(model, [adapter()])
    backend = KernelBackend(
        [Arena(shape, n) for shape, n in zip(layout.groups, blocks)], launcher=launch
    )
    step = CompiledDecode(model, layout, backend, rotates=False, adapters=choice)
    runner = ModelRunner(
        model, layout, backend, RunMode(batched=True, dense=False), 384, step, choice
    )
    kv = KVTables(layout, blocks)
    row = kv.new_sequence()
    kv.grow(row, 40)
    assert not step.takes([DecodeRow(row, 0, 1)])  # it has no state yet
    runner.prefill(TokenChunk(row, 0, [1, 2, 3]))
    found = []
    for position, number in ((3, 0), (4, 1), (5, 1), (6, 0)):
        call = [DecodeRow(row, position, 1, adapter=number)]
        assert step.takes(call)
        found.append(runner.decode(call))
    mx.eval(found)
    assert len(step._traced) == 2  # without an adapter, and with
    assert choice.rows is None


def adapter() -> Adapter:
    """A LoRA adapter of one of the model's layers."""
    part = LowRank(mx.ones((96, 2)), mx.ones((2, 64)), 0.5)
    path = "model.layers.1.feed_forward.w2"
    return Adapter("a", {path: part}, "print")


@pytest.mark.parametrize("architecture", ["llama", "qwen3_next"])
def test_a_step_takes_its_tokens_from_the_one_in_flight(architecture: str) -> None:
    """Without a compiled step, too; recurrent layers' states stand for what they will be."""
    runner, _ = served(architecture, steps=False)
    runner._draws_on_host = False  # as on a device
    assert runner.overlaps
    kv = KVTables(runner.layout, [8] * len(runner.layout.groups))
    found = []
    for in_flight in (False, True):
        rows = [kv.new_sequence() for _ in range(2)]
        for row, prompt in zip(rows, ([5, 9, 2], [7] * 31), strict=True):
            kv.grow(row, 40)
            runner.prefill(TokenChunk(row, 0, prompt))
        places, tokens, previous = [3, 31], [4, 8], None
        for _ in range(3):
            step = [
                DecodeRow(
                    row,
                    place,
                    0 if in_flight and previous is not None else token,
                    None if previous is None else at,
                )
                for at, (row, place, token) in enumerate(
                    zip(rows, places, tokens, strict=True)
                )
            ]
            previous = runner.sample(step, None, previous if in_flight else None).tokens
            places = [place + 1 for place in places]
            tokens = [0, 0] if in_flight else previous.tolist()
            if not in_flight:
                found.extend(tokens)
        for row in rows:
            kv.release(row)
    assert previous.tolist() == found[-2:]


def test_a_trace_that_fails_leaves_the_token_as_it_was() -> None:
    """Gemma 3 adds in a compiled function, which takes no stream: the ways that are tried next need a real fence."""
    model, _ = tiny_model("gemma3_text", seed=3)
    install(model)
    layout = probe_layout(model)
    blocks = [8] * len(layout.groups)

    def launch(dispatch: Dispatch) -> list[mx.array]:
        return [
            mx.zeros(shape, dtype=dtype)
            for shape, dtype in zip(dispatch.shapes, dispatch.dtypes, strict=True)
        ]

    backend = KernelBackend(
        [Arena(shape, n) for shape, n in zip(layout.groups, blocks)], launcher=launch
    )
    joined = install_joined_adds(model, AddNorm(launcher=launch))
    tables = KVTables(layout, blocks)
    sequence = tables.new_sequence()
    tables.grow(sequence, 1)
    step, fence = [DecodeRow(sequence, 0, 1)], backend.fence
    joining = CompiledDecode(model, layout, backend, rotates=False, joined=joined)
    with pytest.raises(ValueError, match="ResidualStream"):
        joining.logits(step, mx.array([1]))
    assert backend.fence is fence
    plain = CompiledDecode(model, layout, backend, rotates=False)
    mx.eval(plain.logits(step, mx.array([1])), backend.fence)
    assert backend.fence is not fence


def test_a_shape_without_a_kernel_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="head size 24"):
        KernelBackend([Arena(KVShape(1, 1, 24, 24, None, mx.float32), 2)])
    with pytest.raises(UnsupportedModelError, match="values of 12"):
        KernelBackend([Arena(KVShape(1, 1, 32, 12, None, mx.float32), 2)])
    with pytest.raises(
        UnsupportedModelError,
        match=r"17 heads a KV head.*the reference attention serves",
    ):
        KernelBackend([Arena(KVShape(1, 1, 64, 64, None, mx.float32), 2)], heads=17)
