"""Cached prefixes, forks and preemption over a real tiny model: the tokens stay what they are without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.engine.core import EngineCore
from rvllm_local.errors import EngineError
from tests.support.tiny import save_tiny

ARCHITECTURES = (
    "llama",
    "gemma3_text",
)  # full attention only; sliding windows beside it
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, path, seed=2)
    return path


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), kv_memory="4MB", max_rows=6, prefill_chunk=32) as engine:
        yield engine


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 60, length).tolist()


def check(llm: LLM) -> None:
    llm._client._loop.call(lambda core: core.check_integrity())


def test_a_warm_prefix_gives_the_cold_tokens(llm: LLM) -> None:
    cold = llm.generate(prompt(150), GREEDY)[0]
    warm = llm.generate(prompt(150), GREEDY)[0]
    assert cold.cached_tokens == 0
    assert (
        warm.cached_tokens == 128
    )  # four full blocks; the last tokens are computed anew
    assert warm.token_ids == cold.token_ids
    assert llm.stats()["prefix_hit_tokens"] == 128
    check(llm)


def test_a_partial_hit_ends_at_the_first_differing_block(llm: LLM) -> None:
    first, changed = prompt(150), prompt(150)
    changed[70] = 61
    llm.generate(first, GREEDY)
    requests = make_requests(changed, GREEDY)
    list(open_stream(llm._client, requests))
    (report,) = llm._client.explain(requests[0].request_id)
    assert report.cached_tokens == 64
    assert report.miss is not None and "token 70 is 61" in report.miss
    assert str(first[70]) in report.miss


def test_an_answer_is_reused_by_the_next_turn(llm: LLM) -> None:
    turn = prompt(90)
    answer = llm.generate(turn, GREEDY)[0]
    following = [*turn, *answer.token_ids, *prompt(20, seed=1)]
    warm = llm.generate(following, GREEDY)[0]
    assert (
        warm.cached_tokens == 96
    )  # the prompt's two blocks and one that the answer filled
    with_nothing_cached = llm.generate([5, *following], GREEDY)[0]
    assert with_nothing_cached.cached_tokens == 0


def test_choices_share_their_prompt_and_equal_single_requests(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=12, temperature=0.9, seed=5, n=4, ignore_eos=True
    )
    choices = llm.generate(prompt(77), params)
    check(llm)
    alone = [
        llm.generate(
            prompt(77),
            SamplingParams(max_tokens=12, temperature=0.9, seed=5 + i, ignore_eos=True),
        )[0]
        for i in range(4)
    ]
    assert [choice.token_ids for choice in choices] == [
        single.token_ids for single in alone
    ]
    assert [choice.cached_tokens for choice in choices] == [0, 76, 76, 76]
    assert len({choice.token_ids for choice in choices}) > 1


def test_cached_blocks_are_evicted_when_others_need_them(folder: Path) -> None:
    with LLM(str(folder), kv_memory="600KB", max_rows=4, prefill_chunk=32) as llm:
        for seed in range(12):
            llm.generate(
                prompt(120, seed),
                SamplingParams(max_tokens=4, temperature=0, ignore_eos=True),
            )
            check(llm)
        assert llm.stats()["blocks_free"] == llm.stats()["blocks_total"]


def test_preempted_requests_give_the_same_tokens(folder: Path) -> None:
    params = SamplingParams(max_tokens=70, temperature=0.8, seed=3, ignore_eos=True)
    prompts = [prompt(40 + 7 * i, seed=i) for i in range(5)]
    with LLM(
        str(folder), kv_memory="4MB", max_rows=6, prefill_chunk=32, cache="off"
    ) as roomy:
        expected = [answer.token_ids for answer in roomy.generate(prompts, params)]
        assert roomy.stats()["preemptions"] == 0
        # That company changes nothing is shown in test_parity.py; one row will do here.
        assert roomy.generate(prompts[2], params)[0].token_ids == expected[2]
    with LLM(str(folder), kv_memory="400KB", max_rows=6, prefill_chunk=32) as crowded:
        found = [
            completion.token_ids for completion in crowded.generate(prompts, params)
        ]
        assert crowded.stats()["preemptions"] > 0, "the arena was large enough for all"
        assert crowded.stats()["blocks_swapped"] == 0
        check(crowded)
    assert found == expected


def test_switched_off_nothing_is_reused(folder: Path) -> None:
    with LLM(str(folder), kv_memory="4MB", cache="off") as llm:
        llm.generate(prompt(100), GREEDY)
        assert llm.generate(prompt(100), GREEDY)[0].cached_tokens == 0
        assert llm.stats()["blocks_cached"] == 0


def test_a_report_accounts_for_the_request(llm: LLM) -> None:
    requests = make_requests(prompt(100), GREEDY)
    list(open_stream(llm._client, requests))
    (report,) = llm._client.explain(requests[0].request_id)
    assert (report.prompt_tokens, report.output_tokens) == (100, 24)
    assert report.prefill_chunks == 4 and report.blocks_peak >= 4
    assert report.ttft_s is not None and 0 < report.ttft_s <= report.total_s
    assert (
        report.itl_p50_s is not None
        and report.itl_p99_s is not None
        and report.itl_max_s is not None
    )
    assert report.itl_p50_s <= report.itl_p99_s <= report.itl_max_s
    assert llm._client.explain("unknown") == ()


def test_int8_kv_batches_shares_and_preempts(folder: Path) -> None:
    prompts = [prompt(40 + 7 * i, seed=i) for i in range(5)]
    params = SamplingParams(max_tokens=70, temperature=0, ignore_eos=True)
    with LLM(
        str(folder), kv_memory="4MB", kv_dtype="int8", max_rows=6, prefill_chunk=32
    ) as roomy:
        expected = [answer.token_ids for answer in roomy.generate(prompts, params)]
        assert roomy.stats()["preemptions"] == 0
        warm = roomy.generate(prompts[4], params)[0]
        assert warm.cached_tokens == 64 and warm.token_ids == expected[4]
    with LLM(
        str(folder), kv_memory="120KB", kv_dtype="int8", max_rows=6, prefill_chunk=32
    ) as crowded:
        found = [
            completion.token_ids for completion in crowded.generate(prompts, params)
        ]
        assert crowded.stats()["preemptions"] > 0
        check(crowded)
    assert found == expected


def test_a_new_engine_is_warm_from_disk(folder: Path, tmp_path: Path) -> None:
    def engine(**options: object) -> LLM:
        return LLM(
            str(folder), prefill_chunk=32, cache="disk", cache_dir=tmp_path, **options
        )  # type: ignore[arg-type]

    with engine(kv_memory="4MB") as first:
        cold = first.generate(prompt(400), GREEDY)[0]
    with engine(kv_memory="4MB") as second:
        requests = make_requests(prompt(400), GREEDY)
        tokens = [
            token
            for event in open_stream(second._client, requests)
            for token in event.token_ids
        ]
        (report,) = second._client.explain(requests[0].request_id)
        assert tuple(tokens) == cold.token_ids
        assert report.cached_tokens == report.cached_from_disk == 384
        check(second)
    with engine(
        kv_memory="4MB", kv_dtype="int8"
    ) as other:  # another format: nothing fits
        assert other.generate(prompt(400), GREEDY)[0].cached_tokens == 0


def test_evicted_blocks_come_back_from_disk(folder: Path, tmp_path: Path) -> None:
    with LLM(
        str(folder),
        kv_memory="700KB",
        prefill_chunk=32,
        cache="disk",
        cache_dir=tmp_path,
    ) as llm:
        cold = llm.generate(prompt(120), GREEDY)[0]
        for seed in range(1, 8):
            llm.generate(prompt(120, seed), GREEDY)
        warm = llm.generate(prompt(120), GREEDY)[0]
        assert warm.token_ids == cold.token_ids
        assert warm.cached_tokens == 96
        check(llm)


def test_a_damaged_block_file_is_computed_anew(folder: Path, tmp_path: Path) -> None:
    with LLM(
        str(folder), kv_memory="4MB", prefill_chunk=32, cache="disk", cache_dir=tmp_path
    ) as first:
        cold = first.generate(prompt(200), GREEDY)[0]
    for file in sorted(tmp_path.rglob("*.kv"))[::2]:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with LLM(
        str(folder), kv_memory="4MB", prefill_chunk=32, cache="disk", cache_dir=tmp_path
    ) as second:
        assert second.generate(prompt(200), GREEDY)[0].token_ids == cold.token_ids
        check(second)


def test_blocks_that_wait_to_be_written_are_no_more_than_the_arena_has(
    folder: Path, tmp_path: Path
) -> None:
    with LLM(
        str(folder),
        kv_memory="700KB",
        prefill_chunk=32,
        cache="disk",
        cache_dir=tmp_path,
    ) as llm:

        def never_idle(core: EngineCore) -> tuple[int, int]:
            for seed in range(30):
                core.add(
                    make_requests(prompt(120, seed), SamplingParams(max_tokens=1))[0],
                    lambda event: None,
                )
                while core.has_work:
                    core.step()
            return len(core._kv_cache._disk._unspilled), core._kv.blocks_total

        waiting, total = llm._client._loop.call(never_idle)
        assert 0 < waiting <= total


def test_a_swap_file_that_cannot_be_read_frees_its_ranges_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)

    def fail(*_: object) -> bytes:
        raise OSError("the disk is gone")

    with LLM(str(folder), kv_memory="500KB", max_rows=6, prefill_chunk=32) as llm:
        swap = llm._client._loop.call(lambda core: core._kv_cache._swapper._space)
        read, calls = swap.read, iter(range(10**6))
        monkeypatch.setattr(
            swap, "read", lambda part: read(part) if next(calls) < 2 else fail()
        )
        with pytest.raises(EngineError, match="a step of the engine failed: OSError"):
            llm.generate([prompt(40 + 7 * i, seed=i) for i in range(6)], params)
        check(llm)
        assert swap.num_blocks == 0
        assert all(len(set(offsets)) == len(offsets) for offsets in swap._free.values())
