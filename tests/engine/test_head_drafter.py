"""A model's own head drafts: what it says, and that answers stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.head_drafter import HeadDrafter, HeadText
from rvllm_local.engine.speculation.contract import Proposal
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import load_head
from rvllm_local.types import StreamEvent
from tests.support.drafters import FourEach, FreeTokens
from tests.support.heads import save_with_head
from tests.support.scenarios import Answer, Engine
from tests.support.tiny import save_tiny

PROMPT = [5, 6, 7, 80, 31] * 14


@pytest.fixture(scope="module", params=["glm4_moe", "glm_moe_dsa", "qwen3_5"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_with_head(request.param, tmp_path_factory.mktemp("model"), seed=3)


def open_engine(folder: Path, draft: str, **options: Any) -> Engine:
    settings = {"kv_memory": 600_000, "prefill_chunk": 64}
    return Engine(folder, draft=draft, **{**settings, **options})


def drafts_always(engine: Engine) -> Speculator:
    speculator = engine.core._parts.speculator
    assert speculator is not None
    speculator.costs = FreeTokens()
    speculator._length = FourEach()  # type: ignore[assignment]
    return speculator


class Listener:
    """Passes proposals on, and notes them with the length of the text before them."""

    def __init__(self, drafter: HeadDrafter) -> None:
        self._propose = drafter.propose
        self.heard: list[tuple[int, Proposal]] = []

    def __call__(self, streams: Sequence[HeadText], most: int) -> list[Proposal]:
        lengths = [stream.end + 1 for stream in streams]
        proposals = self._propose(streams, most)
        self.heard += zip(lengths, proposals, strict=True)
        return proposals


def test_drafts_are_what_the_head_says_of_the_whole_text(folder: Path) -> None:
    """The prompt was read in chunks, and some drafts were not kept."""
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    with open_engine(folder, "mtp", prefill_chunk=32) as engine:
        drafter = drafts_always(engine)._drafter
        assert isinstance(drafter, HeadDrafter)
        assert drafter._kv.blocks_free == drafter._kv.blocks_total
        listener = Listener(drafter)
        drafter.propose = listener  # type: ignore[method-assign, assignment]
        answer = Answer()
        (request,) = make_requests(tuple(PROMPT), params, request_id="one")
        engine.core.add(request, answer)
        while engine.core.has_work:
            engine.core.step()
        assert drafter._kv.blocks_free == drafter._kv.blocks_total
    files = locate(str(folder))
    model = load_model(files)
    head = load_head(files, model).module
    whole = [*PROMPT, *answer.tokens[0]]
    assert len(listener.heard) > 5
    for length, proposal in listener.heard:
        text = whole[:length]
        states = model.module.model(mx.array([text[:-1]]))
        pairs = text[1:]
        for drafted in proposal.tokens[:2]:
            head.model.embed_tokens.give(states[0])
            logits = head(mx.array([pairs]))
            assert mx.argmax(logits[0, -1]).item() == drafted
            head.model.embed_tokens.give(states[0])
            ended = head.model(mx.array([pairs]))
            states = mx.concatenate([states, ended[:, -1:]], axis=1)
            pairs = [*pairs, drafted]


def test_a_head_is_in_the_plan_and_in_what_is_told(folder: Path) -> None:
    with open_engine(folder, "mtp") as engine:
        drafts_always(engine)
        assert engine.core._parts.drafting == "mtp"
        assert engine.core._identity.memory["drafter"] > 4 * 64 * 64
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        (request,) = make_requests(tuple(PROMPT), params, request_id="one")
        events: list[StreamEvent] = []
        engine.core.add(request, events.append)
        while engine.core.has_work:
            engine.core.step()
        (told,) = engine.core.explain("one")
        stats = engine.core.stats()
    assert told.drafting == "mtp"
    counts = told.accepted_drafts, told.rejected_drafts
    assert sum(counts) > 0
    assert counts == (events[-1].accepted_drafts, events[-1].rejected_drafts)
    names = ("draft_tokens_accepted", "draft_tokens_rejected")
    assert counts == tuple(stats[name] for name in names)


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    llama = save_tiny("llama", tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match="this is a llama model"):
        open_engine(llama, "mtp")
