"""What the flags of `rvllm bench serve` ask for: the endpoint, the trace, the rates.

Refuses what cannot be, before anything is sent.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from rvllm_local.bench import trace
from rvllm_local.bench.load import Endpoint
from rvllm_local.bench.metrics import Slo
from rvllm_local.bench.record import check_writable
from rvllm_local.errors import ConfigError

_KEY_VARIABLE = "RVLLM_API_KEY"
_LONGEST_S = 7 * 86_400.0
_LISTING, _LISTING_S = (
    2**20,
    10.0,
)  # bytes of the list of models that are read, and for how long
# Fields that the trace sets, or that change what an answer is.
_OURS = (
    "messages",
    "prompt",
    "max_tokens",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "model",
    "echo",
)
# Flags that make a trace, with what they are if they are not given, and the traces that
# heed them.
_MAKING: dict[str, tuple[Any, tuple[str, ...]]] = {
    "rate": ([1.0], tuple(trace.TRACES)),
    "requests": (60, tuple(trace.TRACES)),
    "seed": (1, tuple(trace.TRACES)),
    "max_tokens": (48, tuple(trace.TRACES)),
    "prompt_tokens": ((40, 700), ("steady", "bursty", "giant")),
    "turns": (10, ("agent",)),
    "prefix": (1000, ("agent",)),
}


def check(arguments: Namespace) -> Slo:
    """Refuse flags that cannot be or would be ignored, and files that could not be written; the SLO."""
    for name in ("timeout", "slo_ttft", "slo_itl"):
        if not 0 < (value := getattr(arguments, name)) < math.inf:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be a number of seconds above 0, not {value:g}"
            )
    if arguments.rows and not arguments.json:
        raise ConfigError(
            "--rows keeps every request in the JSON: give --json FILE, too"
        )
    files = [
        file
        for file in (arguments.json, arguments.svg, arguments.save_trace)
        if file is not None
    ]
    for file in files:
        check_writable(file)
    paths = [Path(file).resolve() for file in (*files, arguments.trace)]
    if len({*paths}) < len(paths):
        raise ConfigError(
            f"{', '.join(files)} and the trace must be different files, or one would replace the other"
        )
    return Slo(arguments.slo_ttft, arguments.slo_itl)


def endpoint_from(arguments: Namespace) -> Endpoint:
    """Where to ask, with the model's name found out if none was given.

    Raises `ConfigError`.
    """
    url = _checked_url(arguments.url)
    key = (os.environ.get(_KEY_VARIABLE, "").split() or [""])[0]
    if key and url.userinfo:
        raise ConfigError(
            f"the address holds a name or password, and {_KEY_VARIABLE} a key: only one can be sent"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {_KEY_VARIABLE} holds letters that no HTTP header can have"
        )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    extra = _extra(arguments.body)
    if not arguments.may_stop:
        extra = {"ignore_eos": True, **extra}
    model = arguments.model or _first_model(arguments.url, headers)
    secrets = tuple(secret for secret in (key, url.password) if secret)
    return Endpoint(
        arguments.url, model, arguments.api, headers, extra, arguments.timeout, secrets
    )


def _checked_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        shown = url.copy_with(username=None, password=None) if url.userinfo else url
        raise ConfigError(
            f"--url '{shown}' must begin with http:// or https:// and the name of a host"
        )
    if url.query or url.fragment:
        raise ConfigError("--url must be the base address of the API, without ? and #")
    return url


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text)
        if not isinstance(extra, dict):
            raise ValueError("it is not an object")
        json.dumps(extra, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--body must be a JSON object: {error}") from error
    if ours := [name for name in _OURS if name in extra]:
        raise ConfigError(
            f"--body cannot set {', '.join(ours)}: the trace and the flags do"
        )
    return extra


def _first_model(url: str, headers: Mapping[str, str]) -> str:
    """The first model that the endpoint lists.

    Requests tell what is wrong with one that lists none.
    """
    try:
        listing = json.loads(
            asyncio.run(_listing(f"{url.rstrip('/')}/models", headers))
        )
        return str(listing["data"][0]["id"])
    except (
        httpx.HTTPError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        RecursionError,
    ):
        return "default"


async def _listing(url: str, headers: Mapping[str, str]) -> bytes:
    """The list's bytes.

    An endpoint that sends without end, or a byte a second, is given up.
    """
    text = b""
    async with (
        asyncio.timeout(_LISTING_S),
        httpx.AsyncClient(timeout=None, trust_env=False, headers=headers) as client,
        client.stream("GET", url) as response,
    ):
        async for part in response.aiter_bytes():
            text += part
            if len(text) > _LISTING:
                raise ValueError("the list of models has no end")
    return text


def trace_from(arguments: Namespace) -> trace.Trace:
    """The trace that the flags ask for, at one request a second.

    Sets `recorded` for one with times of its own.
    """
    make = trace.TRACES.get(arguments.trace)
    arguments.recorded = make is None
    if make is None and not Path(arguments.trace).exists():
        raise ConfigError(
            f"--trace {arguments.trace} is neither {', '.join(trace.TRACES)} nor a file"
        )
    _fill_in(arguments)
    if make is None:
        return _recorded(arguments)
    shortest, longest = arguments.prompt_tokens
    if not 1 <= shortest <= longest:
        raise ConfigError(
            f"--prompt-tokens must be two numbers from 1 on, the smaller first, not {shortest} {longest}"
        )
    for name in ("requests", "max_tokens", "turns", "prefix"):
        if (value := getattr(arguments, name)) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at least 1, not {value}"
            )
    mix = trace.Mix(shortest, longest, arguments.max_tokens)
    if arguments.trace == "agent":
        make = functools.partial(
            trace.agent, turns=arguments.turns, prefix=arguments.prefix
        )
    made = make(arguments.requests, arguments.seed, mix)
    names = [f"{rate:g}" for rate in arguments.rate]
    if len({*names}) < len(names):
        raise ConfigError(f"--rate {' '.join(names)} names a rate twice")
    for rate in arguments.rate:
        _check_length(made.at_rate(rate), f"at {rate:g} a second")
    return made


def _fill_in(arguments: Namespace) -> None:
    """Give flags their usual values.

    Raises `ConfigError` for one that the trace would not heed.
    """
    for name, (usual, heeding) in _MAKING.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual)
        elif arguments.trace not in heeding:
            kind = (
                "a recorded trace, which has its own"
                if arguments.recorded
                else f"the trace {arguments.trace}"
            )
            raise ConfigError(
                f"--{name.replace('_', '-')} says nothing to {kind}: leave it out"
            )


def _recorded(arguments: Namespace) -> trace.Trace:
    path = Path(arguments.trace)
    made = trace.load(path)
    _check_length(made, "as recorded (times are seconds)")
    span = made.sessions[-1].at
    arguments.rate = [made.num_requests / span if span else math.inf]
    if arguments.api == "completions" and not made.is_text:
        raise ConfigError(
            f"{path} holds messages that are more than text, which --api completions cannot ask"
        )
    return made


def _check_length(made: trace.Trace, how: str) -> None:
    if not (last := made.sessions[-1].at) <= _LONGEST_S:
        raise ConfigError(
            f"the last request of {made.name} {how} would be sent after {last / 86_400:,.0f} days"
        )
