"""`rvllm bench`: the flags of its verbs, and which module runs each. Loads nothing heavy."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable


def add_arguments(bench: argparse.ArgumentParser) -> None:
    """The verbs below `rvllm bench`."""
    verbs = bench.add_subparsers(dest="bench", required=True, metavar="BENCH")
    _serve(
        verbs.add_parser(
            "serve", help="a trace of requests against any OpenAI-style endpoint"
        )
    )
    for name, about in (
        ("decode", "tokens/s and ms a step"),
        ("prefill", "prompt tokens/s"),
    ):
        verb = verbs.add_parser(name, help=f"{about} of the engine in this process")
        verb.add_argument(
            "model",
            nargs="?",
            default="smollm2-135m",
            help="catalogue name, model folder or .gguf file",
        )
        verb.add_argument(
            "--rounds",
            type=int,
            default=5,
            metavar="N",
            help="measured rounds, after one of warm-up",
        )
        verb.add_argument("--kv-memory", default="512MB", metavar="SIZE")
        verb.add_argument("--json", metavar="FILE")
        if name == "decode":
            verb.add_argument(
                "--rows",
                type=int,
                nargs="+",
                default=[1, 8],
                metavar="N",
                help="streams at once",
            )
            verb.add_argument(
                "--context",
                type=int,
                default=64,
                metavar="N",
                help="prompt tokens of each stream",
            )
            verb.add_argument(
                "--tokens",
                type=int,
                default=64,
                metavar="N",
                help="tokens of each answer",
            )
        else:
            verb.add_argument(
                "--context", type=int, nargs="+", default=[128, 512, 2048], metavar="N"
            )
    kernels = verbs.add_parser(
        "kernels", help="GB/s of each kernel beside a plain copy on the GPU"
    )
    kernels.add_argument("--json", metavar="FILE")
    startup = verbs.add_parser(
        "startup", help="from the start of a process to its first token"
    )
    startup.add_argument(
        "model",
        nargs="?",
        default="smollm2-135m",
        help="catalogue name, model folder or .gguf file",
    )
    startup.add_argument("--rounds", type=int, default=3, metavar="N")
    startup.add_argument("--kv-memory", default="64MB", metavar="SIZE")
    startup.add_argument("--json", metavar="FILE")
    compare = verbs.add_parser(
        "compare", help="two JSON files side by side, with noise bounds"
    )
    compare.add_argument("before", metavar="A.json")
    compare.add_argument("after", metavar="B.json")
    compare.add_argument(
        "--stable",
        action="store_true",
        help="only figures that depend on the code alone",
    )
    compare.add_argument(
        "--fail-over",
        type=float,
        default=1.1,
        metavar="RATIO",
        help="how much worse a stable figure may be (1.1)",
    )


def _serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--url",
        default="http://127.0.0.1:8473/v1",
        help="base address of the API, with /v1",
    )
    serve.add_argument(
        "--model", metavar="NAME", help="the first that the endpoint lists"
    )
    serve.add_argument("--api", choices=("chat", "completions"), default="chat")
    serve.add_argument(
        "--trace",
        default="bursty",
        metavar="NAME",
        help="steady, bursty, giant, agent or a JSONL file",
    )
    serve.add_argument(
        "--rate",
        type=float,
        nargs="+",
        metavar="R",
        help="arrivals a second, one run each (1); inf: at once",
    )
    serve.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help="requests of a run (60; agents: sessions)",
    )
    serve.add_argument(
        "--max-tokens", type=int, metavar="N", help="length of each answer (48)"
    )
    serve.add_argument(
        "--prompt-tokens", type=int, nargs=2, metavar=("LEAST", "MOST"), help="(40 700)"
    )
    serve.add_argument("--turns", type=int, metavar="N", help="turns of an agent (10)")
    serve.add_argument(
        "--prefix",
        type=int,
        metavar="N",
        help="tokens that an agent begins with (1000)",
    )
    serve.add_argument(
        "--seed", type=int, metavar="N", help="another draws other requests (1)"
    )
    serve.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="deadline of a request",
    )
    serve.add_argument(
        "--slo-ttft",
        type=float,
        default=2.0,
        metavar="S",
        help="TTFT of a good request",
    )
    serve.add_argument(
        "--slo-itl",
        type=float,
        default=0.2,
        metavar="S",
        help="mean inter-token latency of a good one",
    )
    serve.add_argument(
        "--pid", type=int, metavar="N", help="the server's process, to watch its memory"
    )
    serve.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="count answers with this model's tokenizer, too",
    )
    serve.add_argument(
        "--body",
        default='{"temperature": 0}',
        metavar="JSON",
        help="fields to add to each request",
    )
    serve.add_argument(
        "--may-stop", action="store_true", help="do not ask to ignore the end token"
    )
    serve.add_argument(
        "--label",
        default="rvllm",
        metavar="NAME",
        help="what the endpoint is called in the results",
    )
    serve.add_argument("--save-trace", metavar="FILE", help="write the trace as JSONL")
    serve.add_argument(
        "--rows", action="store_true", help="keep every request in the JSON"
    )
    serve.add_argument("--json", metavar="FILE")
    serve.add_argument("--svg", metavar="FILE", help="a plot of latency against load")


def bench(arguments: argparse.Namespace) -> int:
    """Run one verb; its module is imported only now."""
    module = importlib.import_module(
        f"rvllm_local.bench.{_MODULES.get(arguments.bench, arguments.bench)}"
    )
    run: Callable[[argparse.Namespace], int] = getattr(module, arguments.bench)
    return run(arguments)


_MODULES = {"decode": "in_process", "prefill": "in_process"}
