"""A grammar that explodes, at compile time or at a token, ends its request and no other."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.engine import grammar_masks
from rvllm_local.errors import GrammarError, QueueFullError
from rvllm_local.text.grammar import trials
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.grammar.matcher import Matcher
from rvllm_local.text.grammar.trial_process import Vocabulary
from rvllm_local.text.grammar.trials import Trials
from rvllm_local.types import FinishReason
from tests.support.tiny import save_tiny

WORDS = [bytes([value]) for value in range(256)] + [b"<|special 256|>"]
ORDINARY = '{"grammars": [{"lark_grammar": "start: /[a-z]{1,20}/"}]}'
FREE = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def tried() -> Trials:
    return Trials(Vocabulary(WORDS, [256], [256]))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder, seed=2)
    with LLM(str(folder), kv_memory="4MB", max_rows=8) as engine:
        yield engine


def bomb(number: int) -> str:
    """An intersection of counters, whose states are their product."""
    terms = [f"/(?s:.*)a(?s:.){{{count}}}b(?s:.*)/" for count in range(40 + number)]
    lark = "start: X\nX: " + " & ".join(terms)
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def test_a_good_grammar_passes_and_a_bad_one_says_why(tried: Trials) -> None:
    tried.check(ORDINARY)
    with pytest.raises(GrammarError, match="cannot be enforced"):
        tried.check('{"grammars": [{"lark_grammar": "start: ("}]}')


def test_a_trial_ends_with_its_limits(
    tried: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = trials._Limits(0.02, 128 * 2**20, 2)
    monkeypatch.setattr(trials, "_QUICK", tiny)
    monkeypatch.setattr(trials, "_HEAVY", tiny)
    with pytest.raises(GrammarError, match="takes longer than"):
        tried.check(bomb(0))
    tried.check(ORDINARY)


def test_a_process_that_was_killed_is_started_again(tried: Trials) -> None:
    tried.check(ORDINARY)
    assert tried._parent_end is not None
    tried._parent_end.close()
    tried.check(ORDINARY.replace("20", "21"))


def test_ordinary_grammars_do_not_wait_behind_bombs(tried: Trials) -> None:
    """The heavy lane is full of bombs; ordinary grammars go in the other."""
    ends: list[Exception] = []

    def explode(number: int) -> None:
        try:
            tried.check(bomb(number))
        except (GrammarError, QueueFullError) as error:
            ends.append(error)

    threads = [threading.Thread(target=explode, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    while not tried._heavy._value < trials._HEAVY.at_once:  # type: ignore[attr-defined]
        time.sleep(0.01)
    for length in range(30, 40):
        tried.check(ORDINARY.replace("20", str(length)))
    assert len(ends) < len(threads), "the bombs were over before the others came"
    for thread in threads:
        thread.join()
    assert len(ends) == len(threads)


def test_a_grammar_that_explodes_at_a_token_ends_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both choices of the slow request end at once; the free stream goes on."""
    grammar = grammar_for_format({"type": "regex", "regex": "[a-z]{500}"})
    slow = make_requests([5, 6, 7], SamplingParams(max_tokens=50, n=2), grammar=grammar)
    alone = llm.generate([9, 8, 7], FREE)[0].token_ids
    clock = iter(np.arange(0, 1000, 0.2))
    monkeypatch.setattr(grammar_masks.time, "thread_time", lambda: float(next(clock)))
    stream = llm.stream([9, 8, 7], FREE)
    with pytest.raises(GrammarError, match="processor time for one token"):
        list(open_stream(llm._client, slow))
    heard = [token for event in stream for token in event.token_ids]
    assert tuple(heard) == alone
    assert llm.stats()["requests_running"] == 0


def test_a_panic_of_the_library_ends_one_request(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As the library's own is called."""

    def panic(*_: Any) -> None:
        raise PanicException

    # Not once: a mask may be for a draft, which ends where its grammar fails.
    real, calls = Matcher._write, itertools.count()

    def write(self: Matcher, inner: Any, row: Any) -> None:
        if next(calls) >= 3:
            inner = type("Inner", (), {"compute_bitmask": panic})()
        real(self, inner, row)

    monkeypatch.setattr(Matcher, "_write", write)
    grammar = grammar_for_format({"type": "regex", "regex": "[a-z]{50}"})
    bound = make_requests([5, 6], SamplingParams(max_tokens=40), grammar=grammar)
    with pytest.raises(GrammarError, match="library fail"):
        list(open_stream(llm._client, bound))
    answer = llm.generate([9, 8, 7], FREE)[0]
    assert answer.finish_reason is FinishReason.LENGTH
