"""What is drafted: where it pays, along grammars, and nothing that ends a request."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.drafting import Drafting
from rvllm_local.engine.grammar_drafts import (
    COMPACT,
    ENDED,
    LAID_OUT,
    USUAL,
    along_grammar,
)
from rvllm_local.engine.speculation.acceptance import Acceptance
from rvllm_local.engine.speculation.contract import (
    FORCED,
    LONG,
    MIDDLE,
    NOTHING,
    SHORT,
    Proposal,
    alike,
)
from rvllm_local.engine.speculation.depth import StepCosts, choose_depths
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.errors import GrammarError
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.types import FinishReason
from tests.support.drafters import Knowing, let_draft
from tests.support.scenarios import FORMAT, Answer, Engine
from tests.support.tiny import VOCAB_SIZE, save_tiny
from tests.text.schema_corpus import EOS, byte_tokenizer
from tests.text.schema_corpus import VOCAB_SIZE as NUM_BYTE_TOKENS

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, NUM_BYTE_TOKENS, EOS)


def after(compiler: GrammarCompiler, text: str) -> Matcher:
    matcher = compiler.compile(grammar_for_format(FORMAT))
    for token in TOKENIZER.encode(text, bos=False):
        matcher.advance(token)
    return matcher


def nothing(_tokens: object) -> Proposal:
    return NOTHING


def text_of(proposal: Proposal) -> str:
    return TOKENIZER.decode(list(proposal.tokens))


def test_what_a_grammar_forces_is_drafted(compiler: GrammarCompiler) -> None:
    matcher = after(compiler, '{ "')
    proposal = along_grammar(matcher, nothing)
    assert text_of(proposal).startswith("name")
    assert proposal.kinds[:4] == (FORCED,) * 4
    # The draft left the matcher where it was.
    assert matcher.forced() == list(proposal.tokens[: len(matcher.forced())])


def test_between_forced_tokens_the_compact_form_is_guessed(
    compiler: GrammarCompiler,
) -> None:
    """A blank may come here: what comes without one is a guess, what follows is not."""
    proposal = along_grammar(after(compiler, "{"), nothing)
    assert text_of(proposal) == '"name":'
    assert proposal.kinds[0] == COMPACT
    assert FORCED in proposal.kinds[1:]


def test_blanks_are_guessed_as_the_document_has_had_them(
    compiler: GrammarCompiler,
) -> None:
    proposal = along_grammar(after(compiler, '{\n "name": "ab"'), nothing)
    assert text_of(proposal) == ',\n "kind'
    assert set(proposal.kinds) == {LAID_OUT, FORCED}
    usual = along_grammar(after(compiler, '{\n "name"'), nothing)
    assert text_of(usual) == ': "'
    assert usual.kinds == (LAID_OUT, USUAL, USUAL)


def test_a_string_is_guessed_to_end(compiler: GrammarCompiler) -> None:
    """That alone is uncertain: what stands behind it is forced, or laid out."""
    proposal = along_grammar(after(compiler, '{"name":"ab'), nothing)
    assert text_of(proposal) == '","kind"'
    assert proposal.kinds[:2] == (ENDED, LAID_OUT)
    matcher = after(compiler, '{"name":"ab')
    assert along_grammar(matcher, nothing, guesses_ends=False) == NOTHING


def test_the_drafter_guesses_before_the_compact_form(compiler: GrammarCompiler) -> None:
    blank, quote = TOKENIZER.encode(' "', bos=False)

    def guess(tokens: object) -> Proposal:
        return NOTHING if tokens else alike([blank, quote], "long")

    proposal = along_grammar(after(compiler, "{"), guess)
    assert text_of(proposal) == ' "name"'
    assert proposal.kinds[:3] == ("long", "long", FORCED)


def test_what_followed_a_long_stretch_goes_before_the_layout(
    compiler: GrammarCompiler,
) -> None:
    """A short one says less of the blanks than the document itself."""
    comma, blank = TOKENIZER.encode(", ", bos=False)

    def after_stretch(kind: str) -> Proposal:
        def guess(tokens: Sequence[int]) -> Proposal:
            return NOTHING if tokens else alike([comma, blank], kind)

        return along_grammar(after(compiler, '{\n "name": "ab"'), guess)

    assert text_of(after_stretch(SHORT)) == ',\n "kind'
    assert text_of(after_stretch(MIDDLE)).startswith(", ")
    assert text_of(after_stretch(LONG)).startswith(", ")


def test_nothing_is_drafted_that_the_grammar_forbids(compiler: GrammarCompiler) -> None:
    letters = TOKENIZER.encode("xyz", bos=False)
    matcher = after(compiler, '{"name":"a","kind":"round","size":')
    assert along_grammar(matcher, lambda tokens: alike(letters, "long")) == NOTHING


def test_guesses_are_counted_kind_by_kind() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        proposal = Proposal((1, 2, 3), ("good", FORCED, "bad"))
        acceptance.record(proposal, (1, 2, 9))
    assert acceptance.chance("good") > 0.9
    assert acceptance.chance("bad") < 0.1
    assert acceptance.chance(FORCED) == 1.0


def test_a_step_that_was_held_up_once_forbids_no_drafts() -> None:
    costs = StepCosts()
    for _ in range(5):
        costs.record(1, 0.010)
    costs.record(4, 3.0, checks=True)  # it compiled what it ran
    assert choose_depths(costs, [[0.9, 0.8, 0.7]], 7) == [3]
    for _ in range(4):
        costs.record(4, 0.040, checks=True)
    assert choose_depths(costs, [[0.05, 0.05, 0.05]], 7) == [0]


def test_more_tokens_are_tried_where_the_second_is_dear() -> None:
    """Others may cost nothing: what was not measured is believed to cost little."""
    costs = StepCosts()
    for _ in range(3):
        costs.record(1, 0.005)
        costs.record(3, 0.009, checks=True)
    assert costs.cost(4, checks=True) < 0.0095
    assert costs.cost(2, checks=True) == pytest.approx(0.0053)


def test_steps_that_check_drafts_are_measured_apart() -> None:
    """Those of other rows without drafts overlap, and take less for as many tokens."""
    costs = StepCosts()
    assert not costs.knows_plain(8)
    for _ in range(3):
        costs.record(8, 0.0095, checks=True)  # one row and its drafts
        costs.record(8, 0.0050)  # eight rows
    assert costs.knows_plain(8)
    assert not costs.knows_plain(1)
    assert costs.cost(8) == 0.0050
    assert costs.cost(8, checks=True) == 0.0095
    for _ in range(3):
        costs.record(16, 0.0100, checks=True)
    # So drafts of eight rows do not pay at this chance, though a ninth token is cheap.
    assert choose_depths(costs, [[0.3]] * 8, 8) == [0] * 8


def test_many_drafts_are_tried_a_few_times() -> None:
    """What they take is not known else, where few of them do not pay."""
    costs = StepCosts()
    for _ in range(3):
        costs.record(8, 0.0050)
        costs.record(8, 0.0095, checks=True)
    chances = [[0.6, 0.36, 0.2]] * 8
    for _ in range(3):
        assert choose_depths(costs, chances, 24) == [3] * 8
        costs.record(32, 0.0300, checks=True)
    assert choose_depths(costs, chances, 24) == [0] * 8
    costs = StepCosts()
    for _ in range(3):
        costs.record(8, 0.0050)
        costs.record(8, 0.0095, checks=True)
        costs.record(32, 0.0096, checks=True)
    assert choose_depths(costs, chances, 24) == [3] * 8


def test_drafts_without_room_are_not_tried_for_ever() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.record(1, 0.004)
        assert costs.wants_trial(8)
        costs.note_trial(8)
    assert not costs.wants_trial(8)


def test_a_slow_step_makes_neither_fewer_nor_more_tokens_dear() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.record(1, 0.004)
        costs.record(8, 0.006, checks=True)
    costs.record(2, 0.030, checks=True)  # it compiled what it ran
    assert costs.cost(2, checks=True) <= 0.006
    assert costs.cost(3, checks=True) <= 0.006
    assert costs.cost(9, checks=True) < 0.0065


def test_rows_that_came_in_while_steps_overlapped_draft_as_well() -> None:
    """Nobody chose for them yet; and a step has them all, with or without drafts."""
    speculator = Speculator(Knowing([range(60)], VOCAB_SIZE), 32)
    for _ in range(3):
        speculator.costs.record(1, 0.004)
    drafting = Drafting(speculator, None, overlaps=True)  # type: ignore[arg-type]
    rows = []
    for length in (3, 4):
        tokens = list(range(length))
        rows.append(SimpleNamespace(token_ids=tokens, drafts=None, is_decoding=True))
    flight = SimpleNamespace(num_drafted=0)
    drafting.record(rows[0], 1, 0)  # type: ignore[arg-type]
    # What two rows take without drafts has to be seen first.
    assert not drafting.needs_last_step(rows, flight)  # type: ignore[arg-type]
    for _ in range(3):
        speculator.costs.record(2, 0.004)
    assert drafting.needs_last_step(rows, flight)  # type: ignore[arg-type]
    drafting.record(rows[1], 1, 0)  # type: ignore[arg-type]
    for row in rows:
        assert row.drafts.proposal.tokens[0] == len(row.token_ids)


class FailsLater(Matcher):
    """A matcher that fails when it takes a token for the third time."""

    def __init__(self, inner: Matcher) -> None:
        self.inner = inner
        self.count = 0

    def __getattribute__(self, name: str) -> object:
        if name in ("inner", "count", "advance", "copy"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "inner"), name)

    def copy(self) -> Matcher:
        return self.inner.copy()

    def advance(self, token_id: int) -> None:
        self.count += 1
        if self.count == 3:
            raise GrammarError("it fails here")
        self.inner.advance(token_id)


def test_the_tokens_before_one_that_a_grammar_fails_at_are_sent(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """They came in the same step, as drafts that were right."""
    model = save_tiny("llama", tmp_path_factory.mktemp("model"), seed=3)
    params = SamplingParams(max_tokens=20, temperature=0)
    with Engine(
        model, kv_memory=260_000, self_check=False, deterministic=True, draft="ngram"
    ) as engine:
        answers = []
        for fails in (False, True):
            answer = Answer()
            grammar = engine._grammar
            (request,) = make_requests(
                (5, 6, 7), params, request_id=str(fails), grammar=grammar
            )
            matcher = engine._compiler.compile(grammar)
            if fails:
                whole = [5, 6, 7, *answers[0].tokens[0]]
                let_draft(engine.core, Knowing([whole], VOCAB_SIZE))
                matcher = FailsLater(matcher)
            engine.core.add(request, answer, matcher)
            while engine.core.has_work:
                engine.core.step()
            answers.append(answer)
    expected, failed = answers
    assert failed.ends == {0: FinishReason.ERROR}
    assert failed.tokens[0] == expected.tokens[0][:2]
