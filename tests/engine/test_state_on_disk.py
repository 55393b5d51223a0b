"""States of recurrent layers on disk: a new engine is warm, and no wrong state is ever used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import build_core
from rvllm_local.memory.block_file import HEADER
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams
from tests.support.matrix import Answer, Bytes, loaded, tokens

FAMILIES = ("lfm2", "mamba2")  # attention beside the states; states alone
GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
SYSTEM = 100  # tokens


def opened(arch: str, folder: Path, **options: object) -> EngineCore:
    usual = EngineOptions(
        kv_memory=16_000_000,
        max_rows=4,
        prefill_chunk=64,
        cache="disk",
        cache_dir=str(folder),
        self_check=False,
    )
    return build_core(loaded(arch), Bytes(), replace(usual, **options))  # type: ignore[arg-type]


def ask(core: EngineCore, prompt: list[int], num_shared: int = 0) -> Answer:
    answer = Answer()
    (request,) = make_requests(prompt, GREEDY, num_shared=num_shared)
    core.add(request, answer)
    while core.has_work:
        core.step()
    core.check_integrity()
    return answer


def restarted(core: EngineCore, arch: str, folder: Path) -> EngineCore:
    core.close("the end")
    return opened(arch, folder)


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_conversation_goes_on_after_a_restart(arch: str, tmp_path: Path) -> None:
    first = tokens(150, 1)
    core = opened(arch, tmp_path)
    answer = ask(core, first)
    core = restarted(core, arch, tmp_path)
    following = [*first, *answer.tokens, *tokens(20, 2)]
    warm = ask(core, following)
    assert warm.cached == (150 + 40 - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    core.close("the end")
    cold = ask(opened(arch, tmp_path, cache="off"), following)
    assert (cold.cached, cold.tokens) == (0, warm.tokens)


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_turn_whose_thoughts_are_left_out_begins_before_the_answer(
    arch: str, tmp_path: Path
) -> None:
    first = tokens(161, 1)  # its last full block holds what opens the answer
    core = opened(arch, tmp_path)
    ask(core, first)
    core = restarted(core, arch, tmp_path)
    without_thoughts = [*first[:-3], *tokens(40, 2)]
    assert ask(core, without_thoughts).cached == 128
    core.close("the end")


def test_a_new_conversation_begins_where_two_others_parted(tmp_path: Path) -> None:
    system = tokens(SYSTEM, 1)
    core = opened("lfm2", tmp_path)
    ask(core, system + tokens(50, 2))
    core = restarted(core, "lfm2", tmp_path)
    ask(core, system + tokens(50, 3))  # leaves a state where it parts from the first
    core = restarted(core, "lfm2", tmp_path)
    third = system + tokens(50, 4)
    warm = ask(core, third)
    assert warm.cached == SYSTEM // BLOCK_TOKENS * BLOCK_TOKENS
    core.close("the end")
    assert warm.tokens == ask(opened("lfm2", tmp_path, cache="off"), third).tokens


def test_the_second_conversation_begins_after_a_known_system_prompt(
    tmp_path: Path,
) -> None:
    system = tokens(SYSTEM, 1)
    core = opened("lfm2", tmp_path)
    ask(core, system + tokens(50, 2), num_shared=SYSTEM)
    core = restarted(core, "lfm2", tmp_path)
    second = system + tokens(50, 3)
    warm = ask(core, second)
    assert warm.cached == SYSTEM // BLOCK_TOKENS * BLOCK_TOKENS
    core.close("the end")


@pytest.mark.parametrize("arch", FAMILIES)
def test_damaged_and_foreign_records_are_computed_anew(
    arch: str, tmp_path: Path
) -> None:
    prompt = tokens(150, 1)
    core = opened(arch, tmp_path)
    cold = ask(core, prompt)
    assert core._kv_cache._disk.states is not None
    record_size = HEADER.size + state_bytes(core)
    core.close("the end")
    records = [
        file for file in tmp_path.rglob("*.kv") if file.stat().st_size == record_size
    ]
    assert len(records) == 2  # before the answer, and at its end
    for file in records:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    core = opened(arch, tmp_path)
    warm = ask(core, prompt)
    assert (warm.cached, warm.tokens) == (0, cold.tokens)
    core.close("the end")


def state_bytes(core: EngineCore) -> int:
    """A record's bytes, from a store that was just filled."""
    snapshots = core._kv.snapshots
    assert snapshots is not None
    from rvllm_local.memory.state_record import form_bytes, form_of

    return form_bytes(form_of(next(iter(snapshots._kept.values()))))


@pytest.mark.parametrize("harm", ["dtype", "length"])
def test_a_record_of_another_form_is_ignored_and_removed(
    harm: str, tmp_path: Path
) -> None:
    prompt = tokens(150, 1)
    core = opened("mamba2", tmp_path)
    cold = ask(core, prompt)
    core.close("the end")
    core = opened("mamba2", tmp_path)
    store = core._kv_cache.store
    assert store is not None
    real = store.get

    def other(key: bytes) -> bytearray | None:
        record = real(key)
        assert record is not None
        if harm == "dtype":
            return record.replace(b"float32", b"float16")
        return record[:-4]

    store.get = other  # type: ignore[method-assign]
    again = ask(core, prompt)
    assert (again.cached, again.tokens) == (0, cold.tokens)
    assert store.stats().corrupt >= 1
    core.close("the end")


def test_a_budget_below_one_state_turns_the_tier_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        core = opened("mamba2", tmp_path, disk_cache_bytes=1000)
    assert len(caplog.records) == 1
    assert "in memory only" in caplog.text
    assert core._kv_cache.store is None
    prompt = tokens(100, 1)
    assert ask(core, prompt).tokens == ask(core, prompt).tokens
    core.close("the end")
    assert not list(tmp_path.rglob("*.kv"))


def test_the_last_states_of_a_conversation_outlive_its_earlier_ones(
    tmp_path: Path,
) -> None:
    core = opened("mamba2", tmp_path)
    conversation = tokens(100, 1)
    for turn in range(4):
        conversation += [*ask(core, conversation).tokens, *tokens(70, turn)]
        while core.has_idle_work:
            core.idle()
    size = HEADER.size + state_bytes(core)
    core.close("the end")
    ages = [file.stat().st_mtime for file in tmp_path.rglob("*.kv")]
    assert sum(age > 0 for age in ages) == 3
    assert len(ages) > 3  # the budget has room for all: they are only the first to go
    core = opened("mamba2", tmp_path, disk_cache_bytes=3 * size)
    warm = ask(core, conversation)
    assert warm.cached >= len(conversation) - 70 - BLOCK_TOKENS
    core.close("the end")


def test_a_preempted_state_waits_on_disk(tmp_path: Path) -> None:
    prompt = tokens(80, 1)
    core = opened("lfm2", tmp_path, cache="off")
    expected = ask(core, prompt).tokens
    answer = Answer()
    core.add(make_requests(tuple(prompt), GREEDY)[0], answer)
    while len(answer.tokens) < 10:
        core.step()
    (sequence,) = core._scheduler.running
    core._scheduler._preempt(sequence)
    assert sequence.tables.state.arrays == ()
    assert sequence.swapped_state is not None
    while core.has_work:
        core.step()
    assert answer.tokens == expected
    assert core.stats()["blocks_swapped"] == 0
    core.close("the end")
