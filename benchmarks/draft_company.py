"""What drafts change in the default mode, beside what company changes, and what they save.

    python -m benchmarks.draft_company [--model NAME] [--rounds 3] [--tokens 160] [--draws 3]

Rounding may depend on how many rows a step has. So each prompt is answered alone and
without drafts first; then among others, and with drafts, and both. It is counted how
many answers differ from the first one. Then each kind of prompt is timed with drafts
and without, in turn, alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.options import EngineOptions

CODE = '''def area(width, height):
    """Area of a rectangle."""
    return width * height


def volume(width, height, depth):
    """Volume of a box."""
    base = area(width, height)
    return base * depth


def surface(width, height, depth):
    """Surface of a box."""
    top = area(width, height)
    front = area(width, depth)
    side = area(height, depth)
    return 2 * (top + front + side)
'''
EDITS = [
    f"Here is a file:\n```python\n{CODE}```\nThe same file with `{name}` renamed to "
    f"`{other}`:\n```python\n{CODE[:24].replace(name, other)}"
    for name, other in (("width", "length"), ("height", "rise"), ("area", "extent"))
]
PROSE = [
    "The history of the lighthouse begins in the early days of the harbour, when",
    "My grandmother kept a notebook in her kitchen. On its first page",
    "Nobody had expected the train to arrive on time, and so",
    "The difference between a lake and a pond is",
    "Once the rain had stopped, the children",
    "In the autumn of that year the council decided to",
]
LISTS = [
    "A table of numbers and their squares:\n1: 1\n2: 4\n3: 9\n4:",
    "- apples: 3 kg\n- pears: 2 kg\n- plums: 1 kg\n-",
]
KINDS = {"edit": EDITS, "prose": PROSE, "list": LISTS}


class Question(NamedTuple):
    """A prompt, and how its answer is drawn."""

    kind: str
    prompt: str
    params: SamplingParams


def make_questions(num_tokens: int, num_draws: int) -> list[Question]:
    """Each prompt greedily, and with seeds: so many draws in all."""
    questions = []
    for seed in range(num_draws):
        temperature = 0.7 if seed else 0.0
        params = SamplingParams(
            max_tokens=num_tokens, temperature=temperature, seed=seed, ignore_eos=True
        )
        for kind, prompts in KINDS.items():
            for prompt in prompts:
                questions.append(Question(kind, prompt, params))
    return questions


def answers(llm: LLM, questions: Sequence[Question]) -> list[list[int]]:
    """The tokens of each answer. All are asked for at once."""
    streams = []
    for question in questions:
        tokens = tuple(llm.tokenizer.encode(question.prompt))
        requests = make_requests(tokens, question.params)
        streams.append(open_stream(llm._client, requests))
    tokens_of = []
    for stream in streams:
        tokens: list[int] = []
        for event in stream:
            tokens.extend(event.token_ids)
        tokens_of.append(tokens)
    return tokens_of


def alone(llm: LLM, questions: Sequence[Question]) -> list[list[int]]:
    return [answers(llm, [question])[0] for question in questions]


def differing(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> int:
    return sum(our != their for our, their in zip(ours, theirs, strict=True))


def count_differences(
    plain: LLM, drafted: LLM, questions: Sequence[Question]
) -> dict[str, int]:
    """How many answers differ from those that were made alone and without drafts."""
    expected = alone(plain, questions)
    counts = {"answers": len(questions)}

    def count(name: str, tokens: list[list[int]]) -> None:
        counts[name] = differing(tokens, expected)
        print(f"{name}: {counts[name]} of {len(questions)} differ", flush=True)

    count("alone again", alone(plain, questions))
    count("with drafts", alone(drafted, questions))
    count("in company", answers(plain, questions))
    count("in other company", answers(plain, questions[::-1])[::-1])
    count("with drafts in company", answers(drafted, questions))
    return counts


def seconds_a_token(llm: LLM, question: Question) -> float:
    began = time.perf_counter()
    (tokens,) = answers(llm, [question])
    return (time.perf_counter() - began) / len(tokens)


def time_kinds(
    plain: LLM, drafted: LLM, questions: Sequence[Question], num_rounds: int
) -> dict[str, Any]:
    """Of each kind: tokens a step, and the speed as a share of that without drafts."""
    figures = {}
    for kind in KINDS:
        ratios = []
        steps_before = drafted.stats()["steps"]
        num_tokens = 0
        for round_number in range(num_rounds):
            for question in questions:
                if question.kind != kind:
                    continue
                if round_number % 2:
                    without = seconds_a_token(plain, question)
                    with_drafts = seconds_a_token(drafted, question)
                else:
                    with_drafts = seconds_a_token(drafted, question)
                    without = seconds_a_token(plain, question)
                ratios.append(without / with_drafts)
                num_tokens += question.params.max_tokens or 0
        steps = int(drafted.stats()["steps"]) - int(steps_before)
        figures[kind] = {
            "tokens a step": round(num_tokens / steps, 2),
            "speed, median": round(statistics.median(ratios), 3),
            "pairs": len(ratios),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cpu-weights", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--draws", type=int, default=3, help="of each prompt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    common: dict[str, Any] = {
        "kv_memory": 256_000_000,
        "cache": "off",
        "max_rows": 16,
        "cpu_weights": args.cpu_weights,
    }
    questions = make_questions(args.tokens, args.draws)
    off = EngineOptions(draft="off", **common)
    on = EngineOptions(draft="ngram", **common)
    with (
        LLM.from_options(args.model, off) as plain,
        LLM.from_options(args.model, on) as drafted,
    ):
        figures: dict[str, Any] = {
            "differing": count_differences(plain, drafted, questions)
        }
        figures["timed"] = time_kinds(plain, drafted, questions, args.rounds)
        print(json.dumps(figures["timed"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
