"""The verbs of `rvllm`: a line of help, the flags, and what runs.

A verb's module is imported only when it runs. Loads nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rvllm_local import __version__
from rvllm_local.commands import arguments as flags
from rvllm_local.commands import machine_arguments as machine_flags
from rvllm_local.commands import model_arguments as model_flags
from rvllm_local.commands.any_order import AnyOrderParser
from rvllm_local.commands.bench_arguments import bench_arguments


@dataclass(frozen=True, slots=True)
class Verb:
    """What `rvllm NAME` takes and does. `run` returns the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    hands_on: bool = False  # what stands behind -- is another program's


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    A verb gets its flags only if it is among `words`; None gives all their flags.
    """
    parser = AnyOrderParser(
        prog="rvllm", description="A local-first assistant runtime."
    )
    parser.add_argument("--version", action="version", version=f"rvllm {__version__}")
    parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb_parser = parsers.add_parser(name, help=verb.help)
        if words is None or name in words:
            verb.add_arguments(verb_parser)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line. `rest` is what is handed on to another program."""
    rest: list[str] = []
    own_words = list(words)
    verb = VERBS.get(own_words[0]) if own_words else None
    if verb is not None and verb.hands_on and "--" in own_words:
        index = own_words.index("--")
        rest = own_words[index + 1 :]
        own_words = own_words[:index]
    arguments = build_parser(own_words).parse_args(own_words)
    arguments.rest = rest
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.interrupting import insisting_interrupts

    with insisting_interrupts():
        from rvllm_local.commands.run import run

        return run(arguments)


def _chat(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.chat import chat

    return chat(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.spares import start_spares

    spares = start_spares() if arguments.models else None
    try:
        from rvllm_local.commands.serve import serve

        return serve(arguments, spares)
    finally:
        if spares is not None:
            spares.close()


def _rank(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.rank import rank

    return rank(arguments)


def _plan(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.plan import plan

    return plan(arguments)


def _config(_arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.config import config

    return config()


def _doctor(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.doctor import doctor

    return doctor(arguments)


def _cache(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.cache import cache

    return cache(arguments)


def _recommend(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.recommend import recommend

    return recommend(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.bench import bench

    return bench(arguments)


def _launch(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.launch.launch import launch

    return launch(arguments)


def _completion(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.completion import completion

    return completion(arguments.shell, build_parser())


def _service(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.service.service import service

    return service(arguments)


def _stop(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.stop import stop

    return stop(arguments)


def _about_models(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands import models

    status: int = getattr(models, arguments.verb)(arguments)
    return status


def _pack(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.pack import pack

    return pack(arguments)


def _convert(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.convert import convert

    return convert(arguments)


VERBS = {
    "run": Verb("answer a prompt and print the figures", flags.run_arguments, _run),
    "serve": Verb(
        "answer OpenAI- and Anthropic-style requests on localhost",
        flags.serve_arguments,
        _serve,
    ),
    "rank": Verb(
        "compute a part of a model that another machine serves",
        machine_flags.rank_arguments,
        _rank,
    ),
    "plan": Verb(
        "show what memory a model takes, without loading it",
        flags.plan_arguments,
        _plan,
    ),
    "chat": Verb("talk in the terminal", flags.chat_arguments, _chat),
    "launch": Verb(
        "run a coding agent on this machine's server",
        flags.launch_arguments,
        _launch,
        hands_on=True,
    ),
    "service": Verb(
        "have the system start the server, and keep it running",
        flags.service_arguments,
        _service,
        hands_on=True,
    ),
    "stop": Verb("end a server that runs", flags.stop_arguments, _stop),
    "ls": Verb(
        "list the models that are installed, and those that have a name",
        model_flags.ls_arguments,
        _about_models,
    ),
    "pull": Verb("fetch a model", model_flags.pull_arguments, _about_models),
    "rm": Verb("remove installed models", model_flags.rm_arguments, _about_models),
    "show": Verb(
        "print all that is known of a model", model_flags.show_arguments, _about_models
    ),
    "ps": Verb(
        "list the processes that have a model open",
        model_flags.ps_arguments,
        _about_models,
    ),
    "search": Verb(
        "look for models by name", model_flags.search_arguments, _about_models
    ),
    "recommend": Verb(
        "name the best model for this machine",
        model_flags.recommend_arguments,
        _recommend,
    ),
    "cache": Verb(
        "show what the disk cache holds, or clear it",
        model_flags.cache_arguments,
        _cache,
    ),
    "pack": Verb(
        "write a model as a bundle, which loads without a copy",
        model_flags.pack_arguments,
        _pack,
    ),
    "convert": Verb(
        "quantize a model, and measure what it cost",
        model_flags.convert_arguments,
        _convert,
    ),
    "doctor": Verb(
        "check this machine, and with --kernels the GPU kernels on it",
        machine_flags.doctor_arguments,
        _doctor,
    ),
    "bench": Verb(
        "measure an endpoint, the engine, the kernels or the start",
        bench_arguments,
        _bench,
    ),
    "completion": Verb(
        "print a script that completes verbs and flags",
        flags.completion_arguments,
        _completion,
    ),
    "config": Verb(
        "print the configuration and where it comes from", flags.no_arguments, _config
    ),
}
