"""The flags of `rvllm bench` and its verbs. Loads nothing heavy."""

from __future__ import annotations

import argparse

_MODEL = "smollm2-135m"
_MODEL_HELP = "catalogue name, model folder or .gguf file"
_ENDPOINT = "http://127.0.0.1:8473/v1"


def bench_arguments(bench: argparse.ArgumentParser) -> None:
    """The verbs below `rvllm bench`."""
    verbs = bench.add_subparsers(dest="bench", required=True, metavar="BENCH")
    serve = verbs.add_parser(
        "serve", help="a trace of requests against any OpenAI-style endpoint"
    )
    _endpoint(serve)
    _trace(serve)
    _judgement(serve)
    _results(serve)
    _decode(
        verbs.add_parser(
            "decode", help="tokens/s and ms a step of the engine in this process"
        )
    )
    _prefill(
        verbs.add_parser(
            "prefill", help="prompt tokens/s of the engine in this process"
        )
    )
    kernels = verbs.add_parser(
        "kernels", help="GB/s of each kernel beside a plain copy on the GPU"
    )
    kernels.add_argument("--json", metavar="FILE")
    _startup(
        verbs.add_parser(
            "startup", help="from the start of a process to its first token"
        )
    )
    _compare(
        verbs.add_parser(
            "compare", help="two JSON files side by side, with noise bounds"
        )
    )


def _endpoint(serve: argparse.ArgumentParser) -> None:
    """Who is asked, and with what."""
    serve.add_argument(
        "--url", default=_ENDPOINT, help="base address of the API, with /v1"
    )
    serve.add_argument(
        "--model", metavar="NAME", help="the first that the endpoint lists"
    )
    serve.add_argument("--api", choices=("chat", "completions"), default="chat")
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
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="deadline of a request",
    )


def _trace(serve: argparse.ArgumentParser) -> None:
    """Which requests are sent, and when."""
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
    serve.add_argument("--save-trace", metavar="FILE", help="write the trace as JSONL")


def _judgement(serve: argparse.ArgumentParser) -> None:
    """What counts as good, and what is watched beside."""
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


def _results(serve: argparse.ArgumentParser) -> None:
    """What is written."""
    serve.add_argument(
        "--label",
        default="rvllm",
        metavar="NAME",
        help="what the endpoint is called in the results",
    )
    serve.add_argument(
        "--rows", action="store_true", help="keep every request in the JSON"
    )
    serve.add_argument("--json", metavar="FILE")
    serve.add_argument("--svg", metavar="FILE", help="a plot of latency against load")


def _in_process(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs="?", default=_MODEL, help=_MODEL_HELP)
    verb.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="measured rounds, after one of warm-up",
    )
    verb.add_argument("--kv-memory", default="512MB", metavar="SIZE")
    verb.add_argument("--json", metavar="FILE")


def _decode(decode: argparse.ArgumentParser) -> None:
    _in_process(decode)
    decode.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="streams at once",
    )
    decode.add_argument(
        "--context",
        type=int,
        default=64,
        metavar="N",
        help="prompt tokens of each stream",
    )
    decode.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="tokens of each answer"
    )
    decode.add_argument(
        "--draft",
        metavar="NAME",
        help="what guesses tokens: ngram, auto, mtp, off or a smaller model",
    )


def _prefill(prefill: argparse.ArgumentParser) -> None:
    _in_process(prefill)
    lengths = [128, 512, 2048]
    prefill.add_argument("--context", type=int, nargs="+", default=lengths, metavar="N")


def _startup(startup: argparse.ArgumentParser) -> None:
    startup.add_argument("model", nargs="?", default=_MODEL, help=_MODEL_HELP)
    startup.add_argument("--rounds", type=int, default=3, metavar="N")
    startup.add_argument("--kv-memory", default="64MB", metavar="SIZE")
    startup.add_argument("--json", metavar="FILE")


def _compare(compare: argparse.ArgumentParser) -> None:
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
