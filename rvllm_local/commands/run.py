"""What the verbs of `rvllm` do. Imported only when a verb runs."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Generator
from typing import cast

import msgspec

from rvllm_local import host
from rvllm_local.commands.default_model import default_model
from rvllm_local.commands.flags import engine_flags
from rvllm_local.config import Config, load_config, show_progress
from rvllm_local.errors import ParameterError
from rvllm_local.llm import LLM
from rvllm_local.types import ChatEvent, SamplingParams, StreamEvent

_ADAPTER = "adapter"
_TEMPERATURE, _TOP_P = 0.7, 0.95  # where neither a flag nor the model says more


def run(arguments: argparse.Namespace) -> int:
    """Stream the answer to one prompt, then one line of figures."""
    params = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=_or_else(arguments.temperature, _TEMPERATURE),
        top_p=_or_else(arguments.top_p, _TOP_P),
        seed=arguments.seed,
    )
    prompt = _prompt(arguments.prompt)
    config = load_config({"model": arguments.model, **engine_flags(arguments)})
    config = msgspec.structs.replace(config, model=default_model(config))
    report = host.prepare()
    if report.advice:
        print(f"rvllm: {report.advice}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # an answer may hold what the terminal's encoding lacks
    options = config.options
    if arguments.adapter is not None:
        options = msgspec.structs.replace(
            options, adapters=((_ADAPTER, arguments.adapter),)
        )
    params, note = _with_own_sampling(params, arguments, config)
    with LLM.from_options(config.model, options, show_progress) as llm:
        adapter = None if arguments.adapter is None else _ADAPTER
        figures = _answer(llm, prompt, params, adapter)
        print(f"\n\n[{figures}{note}]")
    return 0


def _or_else(value: float | None, default: float) -> float:
    return default if value is None else value


def _with_own_sampling(
    params: SamplingParams, arguments: argparse.Namespace, config: Config
) -> tuple[SamplingParams, str]:
    """The model's own sampling for what no flag states, and words for it."""
    from rvllm_local.models.locate import locate
    from rvllm_local.models.own_sampling import own_sampling

    files = locate(config.model, show_progress, cache_dir=config.cache_dir)
    defaults = own_sampling(files)
    names = ("temperature", "top_p")
    stated = {name for name in names if getattr(arguments, name) is not None}
    shown = []
    for name, value in defaults.values.items():
        if name not in stated:
            shown.append(f"{name} {value:g}")
    note = f", the model's own {', '.join(shown)}" if shown else ""
    return defaults.applied(params, stated), note


def _answer(llm: LLM, prompt: str, params: SamplingParams, adapter: str | None) -> str:
    """Print the answer as it comes; return the line of figures."""
    messages = [{"role": "user", "content": prompt}]
    stream = (
        llm.chat_stream(messages, params, adapter=adapter)
        if llm.tokenizer.chat_template
        else llm.stream(prompt, params, adapter=adapter)
    )
    began = time.perf_counter()
    first, count = None, 0
    is_thinking = False
    with contextlib.closing(cast("Generator[StreamEvent]", stream)) as events:
        for event in events:
            first = first or time.perf_counter()
            count += len(event.token_ids)
            thought = event.reasoning if isinstance(event, ChatEvent) else ""
            if event.text and is_thinking:
                print("\n")
            is_thinking = bool(thought) or (is_thinking and not event.text)
            print(thought + event.text, end="", flush=True)
    ended = time.perf_counter()
    stats = llm.stats()
    first = first or ended
    speed = (
        f"{(count - 1) / (ended - first):.1f} tokens/s" if count > 1 else "one token"
    )
    return (
        f"TTFT {first - began:.2f} s, {speed}, "
        f"KV blocks {stats['blocks_peak']}/{stats['blocks_total']}, "
        f"attention {stats['attention_backend']}"
    )


def _prompt(words: list[str]) -> str:
    given = " ".join(words) if words else None
    try:
        if given is None and not sys.stdin.isatty():
            given = sys.stdin.buffer.read().decode("utf-8")
        (given or "").encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ParameterError(
            "prompt",
            f"the prompt is not UTF-8 text ({error.reason}); convert it, as with iconv",
        ) from error
    if given is None or not given.strip():
        raise ParameterError("prompt", "the prompt is empty; give one, or pipe it in")
    return given
