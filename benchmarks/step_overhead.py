"""What a step costs the engine beside the model: the real core over a model whose logits are given.

    python -m benchmarks.step_overhead [--model NAME] [--batches 1 8 64] [--steps 300] [--only NAME ...] [--json FILE]

The model's call returns logits that it once gave for a text, so what is left is scheduling, laying out the batch, drawing
tokens, detokenizing, emitting and committing. Each case is timed whole, then once more with its parts, then with its events going
through the frames of the process boundary to another process. Milliseconds a step, median and P99: of the clock, and of the
engine thread's processor time, which other work on the machine disturbs less. `drawing` is the part that reads the logits.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvllm_local import host

host.prepare()

import mlx.core as mx
import numpy as np

from rvllm_local import framing
from rvllm_local.clients.contract import make_requests
from rvllm_local.clients.process import frames
from rvllm_local.clients.process.child import _Server
from rvllm_local.engine import core, runner
from rvllm_local.engine.startup import build
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.compiled import Grammars
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import EventSink, SamplingParams, StreamEvent

TEXT = Path(__file__).read_text(encoding="utf-8")
WARM_UP = 20
PROMPT = 40
REGEX = r"([a-zA-Z ,.\n]|[0-9])*"
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 50},
    "min-p": {"min_p": 0.05},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2, "temperature": 0.0},
    "everything": {
        "temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.02, "repetition_penalty": 1.1,
        "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {5: 1.0, 6: -1.0},
    },
    "stop strings": {"temperature": 0.0, "stop": ("\n\n\n\n\n", "never that", "<|im_end|>", "Human:")},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "grammar": {"temperature": 0.0},
}  # fmt: skip
PARTS: tuple[tuple[Any, str, str], ...] = (
    (build.Scheduler, "schedule", "schedule"),
    (core.GrammarMasks, "allow", "grammar mask"),
    (core, "row_samplings", "sampling rows"),
    (runner.ModelRunner, "decode", "call layout"),
    (runner, "draw_on_host", "drawing"),
    (core.Committer, "commit", "commit"),
    (core.StreamingDetokenizer, "push", "detokenize"),
)


class GivenLogits:
    """Stands in for a model: a call of one token a row returns logits that are there already."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits, self._made, self._turn = logits, {}, 0

    def __call__(self, tokens: mx.array, cache: object) -> mx.array:
        rows, length = tokens.shape
        if length > 1:
            return mx.zeros((rows, length, 1))  # nobody reads it
        if rows not in self._made:
            starts = np.random.default_rng(rows).integers(
                0, len(self._logits), (4, rows)
            )
            self._made[rows] = [
                mx.array(self._logits[chosen][:, None]) for chosen in starts
            ]
            mx.eval(self._made[rows])
        self._turn += 1
        return self._made[rows][self._turn % 4]


class Engine:
    """A core over given logits, made anew for each case."""

    def __init__(self, name: str) -> None:
        files = locate(name)
        self.text = read_tokenizer(files)
        self.loaded = load_model(files)
        tokens = self.text.encode(TEXT)[:512]
        self.logits = np.array(
            self.loaded.module(mx.array([tokens]))[0].astype(mx.float32)
        )
        self.loaded.module.model.layers = self.loaded.module.model.layers[
            :1
        ]  # none is called: save the memory
        self.grammars = Grammars(
            self.text, self.loaded.vocab_size, tuple(self.loaded.eos_token_ids)
        )

    def start(
        self, case: str, batch: int, steps: int, sink_of: Callable[[str], EventSink]
    ) -> core.EngineCore:
        options = EngineOptions(
            kv_memory=batch * 400 * 2000 + 2**22,
            max_rows=batch,
            self_check=False,
            max_waiting=1000,
        )
        engine = build.build_core(self.loaded, self.text, options)
        engine._runner._model = GivenLogits(self.logits)
        grammar = (
            grammar_for_format({"type": "regex", "regex": REGEX})
            if case == "grammar"
            else None
        )
        for row in range(batch):
            params = SamplingParams(
                max_tokens=WARM_UP + steps + 10,
                ignore_eos=True,
                seed=row,
                **CASES[case],
            )
            prompt = np.random.default_rng(row).integers(100, 40_000, PROMPT).tolist()
            request = make_requests(prompt, params, grammar=grammar)[0]
            matcher = self.grammars.matchers(grammar, 1)[0] if grammar else None
            engine.add(request, sink_of(request.request_id), matcher)
        while any(not row.timings.token_times for row in engine._open.values()):
            engine.step()
        return engine


def discard(_: StreamEvent) -> None:
    pass


def timed(engine: core.EngineCore, steps: int) -> list[tuple[float, float]]:
    """Seconds of the clock and of processor time of each of `steps` steps after the warm-up."""
    found = []
    gc.collect()
    gc.disable()
    for number in range(WARM_UP + steps):
        began, cpu = time.perf_counter(), time.thread_time()
        engine.step()
        if number >= WARM_UP:
            found.append((time.perf_counter() - began, time.thread_time() - cpu))
    gc.enable()
    engine.close("done")
    return found


class Parts:
    """Exclusive seconds by part; wraps the functions of `PARTS` while it is entered."""

    def __init__(self) -> None:
        self.step: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def __enter__(self) -> Parts:
        self._originals = [
            (owner, name, owner.__dict__[name]) for owner, name, _ in PARTS
        ]
        for owner, name, label in PARTS:
            original = getattr(owner, name)
            wrapped = self._wrapped(original, label)
            setattr(owner, name, wrapped)
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    def _wrapped(self, original: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            try:
                return original(*arguments, **named)
            finally:
                seconds = time.thread_time() - began
                self.step[label] += seconds - self._inner.pop()
                self._inner[-1] += seconds

        return call


def parts_of(engine: core.EngineCore, steps: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    with Parts() as parts:
        for _ in range(steps):
            parts.step.clear()
            parts._inner = [0.0]
            began = time.thread_time()
            engine.step()
            parts.step["rest"] = time.thread_time() - began - parts._inner[0]
            for label, seconds in parts.step.items():
                found[label].append(seconds)
    engine.close("done")
    return found


def read_frames(
    connection: socket.socket, other_end: socket.socket, results: Any
) -> None:
    """The parent's side: decode what comes, and say what a frame cost."""
    other_end.close()
    count, cpu = 0, 0.0
    while (body := framing.receive(connection)) is not None:
        began = time.thread_time()
        event = framing.decode(body, frames._EVENTS)
        cpu += time.thread_time() - began
        count += isinstance(event, frames.Events)
    results.put((count, cpu))


def with_frames(
    engine_of: Callable[[Callable[[str], EventSink]], core.EngineCore], steps: int
) -> dict[str, Any]:
    """The same steps while the events go to another process."""
    ours, theirs = socket.socketpair()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    reader = context.Process(target=read_frames, args=(theirs, ours, results))
    reader.start()
    theirs.close()
    server = _Server(ours)
    outbox = server._outbox
    engine = engine_of(lambda request_id: lambda event: outbox.put((request_id, event)))
    before = time.process_time()
    seconds = timed(engine, steps)
    cpu = (time.process_time() - before) / (steps + WARM_UP)
    server._finish()
    ours.close()
    count, decode = results.get()
    reader.join()
    return {
        "step": seconds,
        "cpu": cpu,
        "decode": decode / (steps + WARM_UP),
        "frames": count / (steps + WARM_UP),
    }


def spread(seconds: list[tuple[float, float]]) -> dict[str, float]:
    """Milliseconds of the clock and of processor time."""
    found = {}
    for place, name in enumerate(("clock", "cpu")):
        ordered = sorted(step[place] for step in seconds)
        found |= {
            f"{name}_p50": 1e3 * statistics.median(ordered),
            f"{name}_p99": 1e3 * ordered[int(0.99 * len(ordered))],
        }
    return found


def measure(given: Engine, case: str, batch: int, steps: int) -> dict[str, Any]:
    whole = spread(timed(given.start(case, batch, steps, lambda _: discard), steps))
    parts = parts_of(
        given.start(case, batch, steps, lambda _: discard), min(steps, 100)
    )
    framed = with_frames(lambda sinks: given.start(case, batch, steps, sinks), steps)
    return {
        "step": whole, "parts": {label: 1e3 * statistics.median(found) for label, found in parts.items()},
        "framed": spread(framed["step"]), "frames_cpu": 1e3 * framed["cpu"], "decode_cpu": 1e3 * framed["decode"],
    }  # fmt: skip


def line(name: str, found: dict[str, Any]) -> str:
    def shown(step: dict[str, float]) -> str:
        return f"{step['cpu_p50']:.2f} ({step['cpu_p99']:.2f}) cpu, {step['clock_p50']:.2f} ({step['clock_p99']:.2f}) clock"

    parts = ", ".join(f"{label} {value:.3f}" for label, value in found["parts"].items())
    return (
        f"{name:>17}: {shown(found['step'])}; with frames {shown(found['framed'])}, sender included "
        f"{found['frames_cpu']:.2f} cpu, receiver {found['decode_cpu']:.2f}; parts: {parts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    given = Engine(args.model)
    results: dict[str, Any] = {}
    for case in args.only:
        for batch in args.batches:
            name = f"{case} x {batch}"
            results[name] = measure(given, case, batch, args.steps)
            print(line(name, results[name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
