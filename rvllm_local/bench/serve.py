"""`rvllm bench serve`: traces at one or several rates against one endpoint, as a table, JSON and a plot."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from rvllm_local.bench import load, record, trace
from rvllm_local.bench.figures import Figure, Slo, exact, failures, summary
from rvllm_local.bench.load import Endpoint, Run
from rvllm_local.bench.outcome import CountTokens, Outcome
from rvllm_local.bench.processes import Bystanders, check_pid, resident
from rvllm_local.bench.svg import Plot, draw
from rvllm_local.bench.text_table import aligned, show
from rvllm_local.errors import ConfigError

_KEY_VARIABLE = "RVLLM_API_KEY"
_MOST_OTHERS = 0.05
COLUMNS = ("ttft_p50", "ttft_p95", "ttft_p99", "itl_p50", "itl_p95", "itl_p99", "e2e_p50", "e2e_p95", "e2e_p99")
TOTALS = ("requests", "errors", "tokens_per_s", "goodput", "cached_tokens", "peak_memory")


def serve(arguments: Namespace) -> int:
    """Run, print and write; exit status 1 if every request failed."""
    endpoint, made, slo = endpoint_from(arguments), trace_from(arguments), Slo(arguments.slo_ttft, arguments.slo_itl)
    count = tokenizer(arguments.tokenizer)
    if arguments.pid is not None:
        check_pid(arguments.pid)
    if arguments.save_trace:
        trace.save(made.at_rate(arguments.rate[0]), Path(arguments.save_trace))
    runs: dict[str, dict[str, Figure]] = {}
    details: dict[str, Any] = {}
    outcomes: list[Outcome] = []
    for rate in arguments.rate:
        name = made.name if arguments.recorded else f"{made.name} at {rate:g}/s"
        others = None if arguments.pid is None else Bystanders(arguments.pid)
        found = load.run(endpoint, made if arguments.recorded else made.at_rate(rate), sampler(arguments.pid))
        share = None if others is None else others.share()
        recheck(found.outcomes, count)
        runs[name] = {**summary(found.outcomes, found.wall_s, slo), **peak(found), "rate": exact(rate, "/s", "higher")}
        details[name] = {"failures": failures(found.outcomes), "wall_s": found.wall_s, "others_cpu": share}
        if arguments.rows:
            details[name]["rows"] = [outcome.to_row() for outcome in found.outcomes]
        outcomes += found.outcomes
        say(f"{name}\n{report(runs[name])}{warnings(found.outcomes, share)}\n")
    kept = record.new_record("serve", runs, arguments.label, **details)
    if arguments.json:
        kept.save(Path(arguments.json))
    if arguments.svg:
        Path(arguments.svg).write_text(plot(runs), encoding="utf-8")
    return 1 if all(outcome.failure is not None for outcome in outcomes) else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def endpoint_from(arguments: Namespace) -> Endpoint:
    """Where to ask, with the model's name found out if none was given. Raises `ConfigError`."""
    key = os.environ.get(_KEY_VARIABLE, "").split()
    headers = {"Authorization": f"Bearer {key[0]}"} if key else {}
    try:
        extra = json.loads(arguments.body)
        if not isinstance(extra, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise ConfigError(f"--body {arguments.body!r} must be a JSON object: {error}") from error
    if not arguments.may_stop:
        extra = {"ignore_eos": True, **extra}
    if not arguments.url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {arguments.url!r} must begin with http:// or https://")
    model = arguments.model or _first_model(arguments.url, headers)
    return Endpoint(arguments.url, model, arguments.api, headers, extra, arguments.timeout)


def _first_model(url: str, headers: Mapping[str, str]) -> str:
    """The first model that the endpoint lists; requests tell what is wrong with one that lists none."""
    try:
        found = httpx.get(f"{url.rstrip('/')}/models", headers=dict(headers), timeout=10.0, trust_env=False).json()
        return str(found["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
        return "default"


def trace_from(arguments: Namespace) -> trace.Trace:
    """The trace that the flags ask for, at one request a second. Sets `recorded` for one with times of its own."""
    make = trace.TRACES.get(arguments.trace)
    arguments.recorded = make is None
    if make is None:
        return trace.load(Path(arguments.trace))
    shortest, longest = arguments.prompt_tokens
    if not 1 <= shortest <= longest:
        raise ConfigError(f"--prompt-tokens must be two numbers from 1 on, the smaller first, not {shortest} {longest}")
    if arguments.requests < 1 or arguments.max_tokens < 1:
        raise ConfigError("--requests and --max-tokens must be at least 1")
    mix = trace.Mix(shortest, longest, arguments.max_tokens)
    if arguments.trace == "agent":
        make = functools.partial(trace.agent, turns=arguments.turns, prefix=arguments.prefix)
    return make(arguments.requests, arguments.seed, mix)


def tokenizer(name: str | None) -> CountTokens | None:
    """Counts the tokens of an answer with an installed model's own tokenizer."""
    if name is None:
        return None
    from rvllm_local.models.loader import locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    encode = read_tokenizer(locate(name)).encode
    return lambda text: len(encode(text, bos=False))


def recheck(outcomes: list[Outcome], count: CountTokens | None) -> None:
    """Hold the usage against the text's own tokens: after the run, since it takes time."""
    for outcome in outcomes if count is not None else ():
        outcome.check(count)


def sampler(pid: int | None) -> load.Sample | None:
    """Reads the server's memory, if its process is known."""
    return None if pid is None else functools.partial(resident, pid)


def peak(found: Run) -> dict[str, Figure]:
    """The most memory that was seen; nothing if it was not looked at."""
    if not found.samples:
        return {}
    return {"peak_memory": exact(max(value for _, value in found.samples), "bytes")}


def report(run: Mapping[str, Figure]) -> str:
    """The table of one run."""
    lines = [
        [name.upper(), *(show(run[f"{name}_p{percent}"], bounds=True) for percent in (50, 95, 99))]
        for name in ("ttft", "itl", "e2e")
    ]
    totals = ", ".join(f"{name.replace('_', ' ')} {show(run.get(name))}" for name in TOTALS)
    return aligned(("", "P50 (95 % interval)", "P95", "P99"), lines) + f"\n{totals}"


def warnings(outcomes: list[Outcome], others_cpu: float | None = None) -> str:
    """What a reader should know before believing the table."""
    found = [f"\nerrors: {count} x {name}" for name, count in failures(outcomes).items()]
    first = next((one for one in outcomes if one.failure is not None), None)
    if first is not None:
        found.append(f"\nfirst error: {first.failure}: {first.detail}")
    whole = [one for one in outcomes if one.failure is None]
    if short := sum(one.tokens < one.max_tokens for one in whole):
        mean = sum(one.tokens for one in whole) / len(whole)
        found.append(f"\n{short} answers ended early (mean length {mean:.1f} tokens): compare with care")
    if silent := sum(one.usage.completion is None for one in whole):
        found.append(f"\n{silent} answers came without usage: their tokens are counted by events")
    said, seen = sum(one.tokens for one in whole), sum(len(one.times) for one in whole)
    if seen and not 0.9 < said / seen < 1.1:
        found.append(f"\nusage says {said} tokens, {seen} events came: inter-token latency is between events")
    if others_cpu is not None and others_cpu > _MOST_OTHERS:
        found.append(f"\nother processes had {others_cpu:.0%} of the cores meanwhile: measure again on a quiet machine")
    return "".join(found)


def plot(runs: Mapping[str, Mapping[str, Figure]]) -> str:
    """Latency against load, P99 and P50 of TTFT and of inter-token latency."""
    lines = {}
    for name, title in (("ttft", "TTFT"), ("itl", "inter-token")):
        for percent in (50, 99):
            points = [(run["rate"].value, run[f"{name}_p{percent}"].value) for run in runs.values()]
            lines[f"{title} P{percent}"] = sorted(point for point in points if math.isfinite(point[0]))
    return draw(Plot("Latency against load", "requests/s", "seconds", is_log=True), lines)
