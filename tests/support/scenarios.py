"""Random requests for an engine, with all that a request may ask for, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import open_core
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import FinishReason, StreamEvent

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["round", "square"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "size"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
}
MOST_STEPS = 6000


@dataclass(frozen=True)
class Scenario:
    """A request, when it comes, and the step after which it is cancelled, if it is."""

    prompt: tuple[int, ...]
    params: SamplingParams
    grammar: bool
    adapter: str | None
    arrives: int
    cancelled: int | None


@dataclass
class Answer:
    """What came: all events of each choice."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    ends: dict[int, FinishReason] = field(default_factory=dict)

    def __call__(self, event: StreamEvent) -> None:
        index = event.index
        assert index not in self.ends, "an event after the last"
        self.tokens.setdefault(index, []).extend(event.token_ids)
        self.logprobs.setdefault(index, []).extend(event.logprobs or ())
        self.text[index] = self.text.get(index, "") + event.text
        if event.finish_reason is not None:
            self.ends[index] = event.finish_reason


def scenario(seed: int, adapters: Sequence[str] = ()) -> Scenario:
    """The request of a number."""
    chance = np.random.default_rng(seed)

    def often(share: float) -> bool:
        return bool(chance.random() < share)

    # Prompts repeat themselves, and many begin alike.
    piece = chance.integers(3, 60, int(chance.integers(2, 12))).tolist()
    prompt = (piece * 40)[: int(chance.integers(1, 90))]
    if often(0.4):
        prompt = ([5, 6, 7, 8, 9, 10, 11, 12] * 12)[: 32 * 2] + prompt
    more: dict[str, Any] = {}
    if often(0.4):
        more |= {"top_k": int(chance.integers(1, 40))}
    if often(0.4):
        more |= {"top_p": float(chance.uniform(0.2, 1.0))}
    if often(0.2):
        more |= {"min_p": 0.05}
    if often(0.3):
        more |= {"repetition_penalty": 1.3, "frequency_penalty": 0.2}
    if often(0.2):
        more |= {"logit_bias": {9: 4.0, 5: -3.0}}
    if often(0.3):
        more |= {"stop": [chr(97 + int(chance.integers(0, 26))), "qu"]}
    if often(0.5):
        more |= {"logprobs": int(chance.integers(0, 4))}
    has_minimum = often(0.2)
    max_tokens = int(chance.integers(1, 32))
    if has_minimum:
        more |= {"min_tokens": min(6, max_tokens)}
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=float(chance.choice([0.0, 0.0, 0.4, 1.0, 1.5])),
        seed=seed,
        n=int(chance.choice([1, 1, 1, 2])),
        ignore_eos=often(0.7),
        **more,
    )
    adapter = None
    if adapters and often(0.4):
        adapter = str(chance.choice(list(adapters)))
    arrives = int(chance.integers(0, 8))
    cancelled = arrives + int(chance.integers(1, 25)) if often(0.15) else None
    return Scenario(tuple(prompt), params, often(0.3), adapter, arrives, cancelled)


class Engine:
    """An engine over a model folder, with grammars."""

    def __init__(self, folder: Path, **options: Any) -> None:
        files = locate(str(folder))
        tokenizer = read_tokenizer(files)
        self.core: EngineCore = open_core(files, tokenizer, EngineOptions(**options))
        limits = self.core.limits
        ends = limits.eos_token_ids
        self._compiler = GrammarCompiler(tokenizer, limits.vocab_size, ends)
        self._grammar = grammar_for_format(FORMAT)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.core.close("done")

    def run(self, scenarios: Sequence[Scenario]) -> list[Answer]:
        """Let all of them come when they do, and work until nothing is left."""
        answers = [Answer() for _ in scenarios]
        step = 0
        while step < 9 or self.core.has_work:
            for number, item in enumerate(scenarios):
                if item.arrives == step:
                    self._add(number, item, answers[number])
                if item.cancelled == step:
                    self.core.cancel(str(number))
            if self.core.has_work:
                self.core.step()
            step += 1
            assert step < MOST_STEPS, "somebody starves"
        self.core.check_integrity()
        return answers

    def _add(self, number: int, item: Scenario, answer: Answer) -> None:
        grammar = self._grammar if item.grammar else None
        requests = make_requests(
            item.prompt,
            item.params,
            request_id=str(number),
            grammar=grammar,
            adapter=item.adapter,
        )
        for request in requests:
            matcher = None if grammar is None else self._compiler.compile(grammar)
            self.core.add(request, answer, matcher)


def assert_same(ours: Answer, theirs: Answer) -> None:
    """One of them may have been cancelled earlier than the other."""
    for index in theirs.ends.keys() & ours.ends.keys():
        tokens = ours.tokens[index], theirs.tokens[index]
        logprobs = ours.logprobs[index], theirs.logprobs[index]
        if FinishReason.CANCELLED in (ours.ends[index], theirs.ends[index]):
            count = min(map(len, tokens))
            assert tokens[0][:count] == tokens[1][:count]
            count = min(map(len, logprobs))
            assert logprobs[0][:count] == logprobs[1][:count]
        else:
            assert tokens[0] == tokens[1]
            assert logprobs[0] == logprobs[1]
            assert ours.text[index] == theirs.text[index]
            assert ours.ends[index] == theirs.ends[index]
