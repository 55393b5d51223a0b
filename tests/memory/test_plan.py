"""The memory plan: every line is accounted for, and what does not fit is refused with the arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local import LLM
from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.plan import MemoryPlan, make_plan
from rvllm_local.memory.scratch import ModelSizes, scratch_bytes

GB = 10**9
LAYOUT = KVLayout(
    (KVShape(2, 4, 64, 64, None, mx.bfloat16),), (LayerSlot(0, 0), LayerSlot(0, 1))
)
SIZES = ModelSizes(1024, 4096, 32000, 16, 2)


def plan(
    *, weights: int = GB, device: int = 8 * GB, kv_asked: int = 0, blocks: int = 1001
) -> MemoryPlan:
    return make_plan(
        LAYOUT, weights=weights, blocks=(blocks,), sizes=SIZES, device=device, reserve=GB, context=1000, rows=8,
        chunk=512, kv_asked=kv_asked,
    )  # fmt: skip


def test_lines_add_up_and_say_what_a_token_takes() -> None:
    found = plan()
    assert found.bytes_per_token == 2 * 2 * 4 * 64 * 2
    assert found.kv_arena == 1001 * 32 * found.bytes_per_token
    assert found.arena_tokens == 32000
    assert found.total == found.weights + found.kv_arena + found.scratch + found.process
    assert found.lines()["budget"] == 7 * GB
    assert found.fits and "fits" in found.table()
    found.check()


def test_what_does_not_fit_is_refused_with_the_arithmetic_and_remedies() -> None:
    found = plan(weights=7 * GB, device=8 * GB)
    assert not found.fits
    with pytest.raises(
        MemoryBudgetError,
        match=r"7\.0 GB.*8\.0 GB - 1\.0 GB = 7\.0 GB.*--kv-dtype int8",
    ):
        found.check()
    assert "--context-length" in found.table()


def test_a_remedy_can_be_done_and_is_not_done_already() -> None:
    def short(*, weights: int, kv_asked: int) -> str:
        found = MemoryPlan(
            weights,
            0,
            0,
            0,
            GB,
            0,
            1000,
            8,
            100,
            100,
            1000,
            kv_asked=kv_asked,
            quantized=True,
        )
        return " ".join(found.remedies())

    assert "--kv-memory 999MB instead of 1000MB" in short(weights=5000, kv_asked=GB)
    assert "--kv-memory" not in short(weights=GB - 1000, kv_asked=2000), (
        "less than a megabyte is left for it"
    )
    assert "int8" not in short(weights=5000, kv_asked=GB)


def test_a_kv_budget_beyond_the_machine_is_refused_even_if_the_model_needs_less() -> (
    None
):
    with pytest.raises(MemoryBudgetError, match=r"100\.0 GB"):
        plan(kv_asked=100 * GB).check()
    with pytest.raises(MemoryBudgetError, match=r"1000\.0 GB"):
        LLM("smollm2-135m", kv_memory="1000GB")


def test_scratch_grows_with_chunk_and_rows() -> None:
    small, large = (
        scratch_bytes(SIZES, 1, 16, 100, 0),
        scratch_bytes(SIZES, 8, 512, 100, 0),
    )
    assert (
        small
        < large
        < scratch_bytes(SIZES, 8, 512, 8000, 0)
        < scratch_bytes(SIZES, 8, 512, 8000, GB)
    )


def test_a_measured_step_replaces_the_estimate() -> None:
    found = plan().with_measured(100_000_000)
    assert found.scratch == 220_000_000, "a tenth more, twice"
    assert found.total == found.weights + found.kv_arena + found.scratch + found.process
    with pytest.raises(MemoryBudgetError, match=r"scratch 22\.0 GB"):
        plan().with_measured(10 * GB).check()


def test_a_prompts_dense_copy_takes_what_the_budget_leaves_and_no_more() -> None:
    def copying(*, weights: int = GB, context: int = 1000) -> MemoryPlan:
        return make_plan(
            LAYOUT, weights=weights, blocks=(1001,), sizes=SIZES, device=8 * GB, reserve=GB, context=context, rows=8,
            chunk=512, copies=True,
        )  # fmt: skip

    without, found = plan(), copying()
    assert found.copy_tokens == 1024, "the whole context, in blocks"
    assert found.prompt_copy == found.copy_tokens * found.bytes_per_token
    assert found.total == without.total + found.prompt_copy
    assert (
        found.lines()["prompt_copy"] == found.prompt_copy
        and "while it prefills" in found.table()
    )
    assert copying(context=10**6).prompt_copy <= 512 * 2**20
    tight = copying(weights=GB + without.budget - without.total - 500_000)
    assert tight.fits and 0 < tight.prompt_copy <= 250_000, "half of what is left"
    assert copying(weights=8 * GB).prompt_copy == 0


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc"
)
def test_the_command_plans_without_loading(smollm2: Path) -> None:
    code = (
        "import sys; from rvllm_local.cli import main; status = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(smollm2), "--context", "4096", "--concurrency", "4", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["context"], found["rows"], found["bytes_per_token"]) == (
        4096,
        4,
        46080,
    )
    assert found["weights"] < 300_000_000, "4 and 8 bits stay so on a CPU"
    assert found["weight_form"] == "quantized"
    assert int(done.stderr.split()[-1]) < 300_000, "kB: the weights were loaded"


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="reads the resident memory from /proc",
)
def test_the_plan_covers_what_the_engine_takes(smollm2: Path) -> None:
    code = """
import sys
from rvllm_local import LLM, SamplingParams
with LLM(sys.argv[1], kv_memory="100MB", max_rows=4, prefill_chunk=256) as llm:
    memory = llm._client.snapshot().memory
    llm.generate([[5 + i] * 260 for i in range(3)], SamplingParams(max_tokens=3, temperature=0.9, top_p=0.9, seed=1))
    print(memory["total"], int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2)],
        capture_output=True,
        text=True,
        check=True,
    )
    total, resident = map(int, done.stdout.split())
    assert resident <= total
