"""Tokens a step of JSON by schema, counted over documents that were written once.

    python -m benchmarks.schema_drafts [--model NAME] [--tokens 300] [--topic forty]

An answer does not depend on drafts. So each document is written without them, sixteen at
once, and it is counted afterwards how many steps it would have taken with n-grams and
along its grammar. A step's cost is assumed, not measured: 1.15 with a second token and
0.06 more with each further one. So nothing depends on the machine or its load.

Beside it stand the steps with no drafter at all: what the grammar forces alone, and with
the blanks and the ends that it leaves open (jump-forward).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.conversation.requests import read_arguments
from rvllm_local.engine.grammar_drafts import along_grammar
from rvllm_local.engine.speculation.contract import (
    FORCED,
    MOST_DRAFTED,
    NOTHING,
    Proposal,
    alike,
)
from rvllm_local.engine.speculation.depth import StepCosts
from rvllm_local.engine.speculation.ngrams import NgramDrafter
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher

STRING, WHOLE, NUMBER, TRUTH = (
    {"type": kind} for kind in ("string", "integer", "number", "boolean")
)
DRAWS = ((0.0, 0), (0.7, 1), (0.7, 2))  # temperature and seed
_MOST_TOKENS = 16


def record(*optional: str, **fields: Any) -> dict[str, Any]:
    required = [name for name in fields if name not in optional]
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def several(item: Any, least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


ADDRESS = record(street=STRING, number=WHOLE, city=STRING, country=STRING)
DAY = record(
    day=one_of("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
    sky=one_of("clear", "cloudy", "rain", "snow"),
    high=WHOLE,
    low=WHOLE,
)
ITEM = record(name=STRING, quantity=WHOLE, price=NUMBER, in_stock=TRUTH)
SHORT_TEXT = {"type": "string", "maxLength": 24}
SCHEMAS = {
    "A person: name, age, city, job and hobby.": record(
        name=STRING, age=WHOLE, city=STRING, job=STRING, hobby=STRING
    ),
    "A form with forty fields, each a short answer.": record(
        **{f"field_{number}": SHORT_TEXT for number in range(40)}
    ),
    "A company with its address and its manager.": record(
        company=STRING, address=ADDRESS, manager=record(name=STRING, address=ADDRESS)
    ),
    "A shop's order: name, quantity and price of each item.": record(
        customer=STRING, items=several(ITEM, 3, 6), total=NUMBER
    ),
    "The weather of five days.": record(place=STRING, days=several(DAY, 5, 5)),
    "A film: title, year, director, genre, awards if any.": record(
        "genre",
        "awards",
        title=STRING,
        year=WHOLE,
        director=STRING,
        genre=STRING,
        awards=several(STRING, 1, 4),
    ),
    "Three rows of four numbers.": record(rows=several(several(WHOLE, 4, 4), 3, 3)),
    "Five people: id, name, email, active.": several(
        record(id=WHOLE, name=STRING, email=STRING, active=TRUTH), 5, 5
    ),
}


class Document(NamedTuple):
    """A request for a document, and the tokens that came."""

    topic: str
    temperature: float
    prompt: tuple[int, ...]
    grammar: str
    tokens: list[int]


class AssumedCosts(StepCosts):
    """Of a step by its number of tokens, where one of a single token costs 1."""

    def knows_plain(self, num_rows: int) -> bool:
        return True

    def wants_trial(self, num_tokens: int) -> bool:
        return False

    def cost(self, num_tokens: int, *, checks: bool = False) -> float:
        if num_tokens < 2:
            return 1.0
        return 1.15 + 0.06 * (num_tokens - 2)


def written(llm: LLM, num_tokens: int, part: str) -> Iterator[Document]:
    """The documents of topics with such a part, which are written at the same time."""
    streams = []
    for topic, schema in SCHEMAS.items():
        if part not in topic:
            continue
        for temperature, seed in DRAWS:
            params = SamplingParams(
                max_tokens=num_tokens, temperature=temperature, seed=seed
            )
            stated = {"name": "document", "schema": schema, "strict": True}
            arguments = {
                "messages": [{"role": "user", "content": f"{topic} As JSON."}],
                "response_format": {"type": "json_schema", "json_schema": stated},
            }
            call = read_arguments(llm._model.name, params, arguments)
            prepared = prepare_chat(llm._model, call)
            prompt = tuple(prepared.prompts[0])
            assert prepared.grammar is not None
            document = Document(topic, temperature, prompt, prepared.grammar, [])
            requests = make_requests(
                prompt, prepared.params[0], grammar=prepared.grammar
            )
            streams.append((document, open_stream(llm._client, requests)))
    for document, stream in streams:
        for event in stream:
            document.tokens.extend(event.token_ids)
        yield document


def count_jumps(
    document: Document,
    compiler: GrammarCompiler,
    propose: Callable[[Matcher], Proposal],
) -> int:
    """Steps that the document takes if all that is proposed is checked."""
    matcher = compiler.compile(document.grammar)
    missing = document.tokens
    steps = 0
    while missing:
        proposed = propose(matcher).tokens[:MOST_DRAFTED]
        num_kept = 0
        for drafted, token in zip(proposed, missing[:-1], strict=False):
            if drafted != token:
                break
            num_kept += 1
        for token in missing[: num_kept + 1]:
            matcher.advance(token)
        missing = missing[num_kept + 1 :]
        steps += 1
    return steps


def forced_alone(matcher: Matcher) -> Proposal:
    """What the grammar leaves no choice of."""
    return alike(matcher.forced(), FORCED)


def jumps(matcher: Matcher) -> Proposal:
    """What a grammar says without a drafter."""
    return along_grammar(matcher, lambda _: NOTHING)


def count_steps(document: Document, compiler: GrammarCompiler) -> int:
    """Steps that the document takes with drafts."""
    matcher = compiler.compile(document.grammar)
    speculator = Speculator(NgramDrafter(), _MOST_TOKENS)
    speculator.costs = AssumedCosts()
    row = speculator.open(document.prompt, lambda _: None)
    missing = document.tokens
    steps = 0
    while missing:
        speculator.guess([row])
        guess_after = functools.partial(speculator.guess_after, row)
        row.proposal = along_grammar(matcher, guess_after)
        speculator.choose([row], [functools.partial(min, len(missing) - 1)])
        num_kept = 0
        for drafted, token in zip(row.tokens, missing, strict=False):
            if drafted != token:
                break
            num_kept += 1
        new = missing[: num_kept + 1]
        missing = missing[num_kept + 1 :]
        for token in new:
            matcher.advance(token)
        speculator.record(row, new, num_kept)
        steps += 1
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=300, help="the most of each")
    parser.add_argument("--topic", default="", help="a part of the topics to write of")
    args = parser.parse_args()
    options = EngineOptions(
        draft="off", cache="off", max_rows=16, kv_memory=256_000_000
    )
    totals: dict[float, list[int]] = {}
    with LLM.from_options(args.model, options) as llm:
        limits = llm._client.limits
        compiler = GrammarCompiler(
            llm.tokenizer, limits.vocab_size, limits.eos_token_ids
        )
        for document in written(llm, args.tokens, args.topic):
            count = len(document.tokens)
            steps = count_steps(document, compiler)
            total = totals.setdefault(document.temperature, [0, 0])
            total[0] += count
            total[1] += steps
            name = f"{document.topic[:32]:32} {document.temperature}"
            print(f"{name}: {count / steps:.2f} of {count} tokens", end="; ")
            forced = count_jumps(document, compiler, forced_alone)
            jumped = count_jumps(document, compiler, jumps)
            print(f"steps: {steps}, {forced} forced, {jumped} jumped", flush=True)
    for temperature, (count, steps) in totals.items():
        print(f"all at {temperature}: {count / steps:.2f} of {count} tokens")


if __name__ == "__main__":
    main()
