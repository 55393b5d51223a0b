"""Single stream, eight streams and prefill on a CPU, beside mlx-lm in the same process and run.

    python benchmarks/cpu_beside_mlx_lm.py [--model smollm2-135m] [--rounds 5] [--json FILE]

Both sides use the same float32 weights (the very same arrays) and the same BLAS. mlx-lm's side is its model
with its own KV cache, driven as its generator drives it: prompt but for the last token, then token by token,
argmax, one step in flight. Rounds alternate between the two; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from rvllm_local import LLM, SamplingParams, host

PROMPT_TOKENS = 64
DECODE_TOKENS = 64
LONG_PROMPT = 480
STREAMS = 8


def token_row(length: int, start: int) -> list[int]:
    """A prompt of varied, valid token ids."""
    return [100 + (start * 7919 + index * 31) % 40_000 for index in range(length)]


class MlxLm:
    """The peer: mlx-lm's model, cache and decode loop."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, prompt: list[int]) -> Any:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        caches = make_prompt_cache(self.model)
        self.model(mx.array([prompt[:-1]]), cache=caches)
        mx.eval([cache.state for cache in caches])
        return caches

    def decode(self, prompt: list[int], count: int) -> float:
        """Tokens per second after the prompt."""
        import mlx.core as mx

        caches = self.prefill(prompt)
        token = mx.array([[prompt[-1]]])
        began = time.perf_counter()
        token = mx.argmax(self.model(token, cache=caches)[:, -1:], axis=-1)
        mx.async_eval(token)
        for _ in range(count - 1):
            following = mx.argmax(self.model(token, cache=caches)[:, -1:], axis=-1)
            mx.async_eval(following)
            token.item()
            token = following
        token.item()
        return count / (time.perf_counter() - began)


def engine_decode(llm: LLM, prompts: list[list[int]], count: int) -> float:
    """Tokens per second of all streams together, from the first token of the last to start."""
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    streams = [llm.stream(prompt, params) for prompt in prompts]
    for stream in streams:
        next(stream)
    began = time.perf_counter()
    tokens = sum(len(event.token_ids) for stream in streams for event in stream)
    return tokens / (time.perf_counter() - began)


def engine_prefill(llm: LLM, prompt: list[int]) -> float:
    """Seconds to the first token of a prompt."""
    began = time.perf_counter()
    llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
    return time.perf_counter() - began


def peer_prefill(peer: MlxLm, prompt: list[int]) -> float:
    import mlx.core as mx

    began = time.perf_counter()
    caches = peer.prefill(prompt)
    mx.argmax(peer.model(mx.array([[prompt[-1]]]), cache=caches)[:, -1], axis=-1).item()
    return time.perf_counter() - began


def measure(model: str, rounds: int) -> dict[str, float]:
    """Medians over alternating rounds, after one warm-up round of everything."""
    from rvllm_local.models.loader import load_model
    from rvllm_local.models.locate import locate

    peer = MlxLm(load_model(locate(model)).module)
    samples: dict[str, list[float]] = {}
    with LLM(model, prefill_chunk=2048) as llm:
        for number in range(rounds + 1):
            single, long = (
                token_row(PROMPT_TOKENS, number),
                token_row(LONG_PROMPT, number + 50),
            )
            crowd = [
                token_row(PROMPT_TOKENS, number * 10 + index)
                for index in range(STREAMS)
            ]
            row = {
                "mlx-lm decode": peer.decode(single, DECODE_TOKENS),
                "rvllm decode": engine_decode(llm, [single], DECODE_TOKENS),
                "mlx-lm prefill": LONG_PROMPT / peer_prefill(peer, long),
                "rvllm prefill": LONG_PROMPT / engine_prefill(llm, long),
                "rvllm eight": engine_decode(llm, crowd, DECODE_TOKENS),
            }
            if number:
                for name, value in row.items():
                    samples.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in samples.items()}


def report(medians: dict[str, float], blas: str) -> str:
    decode, prefill = medians["mlx-lm decode"], medians["mlx-lm prefill"]
    rows = [
        (
            "single stream decode",
            decode,
            medians["rvllm decode"],
            medians["rvllm decode"] / decode,
        ),
        (
            "eight streams, against its single stream",
            decode,
            medians["rvllm eight"],
            medians["rvllm eight"] / decode,
        ),
        (
            f"prefill to first token, {LONG_PROMPT} tokens",
            prefill,
            medians["rvllm prefill"],
            medians["rvllm prefill"] / prefill,
        ),
    ]
    lines = [
        f"{platform.machine()}, {platform.system()}, {blas}; tokens/s, medians",
        "",
    ]
    lines += ["| | mlx-lm | rvllm | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {theirs:.1f} | {ours:.1f} | {ratio:.2f}x |"
        for name, theirs, ours, ratio in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    blas = host.prepare().blas
    medians = measure(args.model, args.rounds)
    print(report(medians, blas))
    if args.json:
        args.json.write_text(
            json.dumps(
                {"machine": platform.platform(), "blas": blas, "medians": medians},
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
