"""The flags of the verbs that start an engine, or look at one. Loads nothing heavy."""

from __future__ import annotations

import argparse

_MODEL = "catalogue name, model folder or .gguf file"


def run_arguments(run: argparse.ArgumentParser) -> None:
    """`rvllm run MODEL PROMPT`."""
    run.add_argument("model", help=_MODEL + "; default: the best that is installed")
    run.add_argument(
        "prompt",
        nargs="*",
        default=[],
        help="the prompt; read from standard input if it is left out",
    )
    run.add_argument(
        "--max-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer, in tokens",
    )
    run.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (the model's own, or 0.7)",
    )
    run.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the tokens that make up this much (the model's own, or 0.95)",
    )
    run.add_argument(
        "--seed", type=int, metavar="N", help="makes the answer repeatable"
    )
    run.add_argument("--adapter", metavar="DIR", help="answer with this LoRA adapter")
    _engine(run)


def serve_arguments(serve: argparse.ArgumentParser) -> None:
    """`rvllm serve MODEL...`."""
    serve.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="models by name or path, the first is the default; none: the best that is installed",
    )
    _who_may_ask(serve)
    serve.add_argument(
        "--lenient", action="store_true", help="drop unknown fields of requests"
    )
    serve.add_argument(
        "--keep-alive",
        metavar="TIME",
        help="unload a model that was idle for so long, like 10m",
    )
    serve.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="another name for a model",
    )
    serve.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="MODEL",
        help="never unload this model",
    )
    serve.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA adapter, asked for as a model",
    )
    _how_it_runs(serve)
    _engine(serve)


def _how_it_runs(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--keep-responses",
        default="30d",
        metavar="TIME",
        help="how long stored responses are kept on disk; 0 keeps them in memory",
    )
    serve.add_argument(
        "--log-file",
        metavar="FILE",
        help="write the log there; five files of 2 MB are kept",
    )
    serve.add_argument(
        "--drain",
        default="30s",
        metavar="TIME",
        help="how long open requests may go on at the end",
    )
    serve.add_argument(
        "--hosts",
        metavar="FILE",
        help="serve one model with the ranks on these machines; this one is rank 0",
    )


def _who_may_ask(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="another than loopback needs a key",
    )
    serve.add_argument(
        "--port", type=int, default=8473, metavar="N", help="0 chooses a free one"
    )
    serve.add_argument(
        "--ollama-port",
        type=int,
        nargs="?",
        const=11434,
        metavar="N",
        help="listen on Ollama's port, too: 11434 if none is given",
    )
    serve.add_argument(
        "--api-key-file", metavar="FILE", help="keys, one a line (or set RVLLM_API_KEY)"
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page that may ask",
    )
    serve.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this")
    serve.add_argument("--tls-key", metavar="FILE", help="the certificate's key")


def plan_arguments(plan: argparse.ArgumentParser) -> None:
    """`rvllm plan MODEL`."""
    plan.add_argument("model", help=_MODEL)
    plan.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens a request may take (the model's own)",
    )
    plan.add_argument(
        "--concurrency", type=int, metavar="M", help="requests at once (max_rows)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    _engine(plan)


def chat_arguments(chat: argparse.ArgumentParser) -> None:
    """`rvllm chat`."""
    from rvllm_local.commands.chat import add_arguments

    add_arguments(chat)


def launch_arguments(launch: argparse.ArgumentParser) -> None:
    """`rvllm launch AGENT [MODEL] [-- ARGUMENTS]`."""
    launch.add_argument(
        "agent",
        metavar="AGENT",
        help="claude, codex, opencode, pi, qwen, cline, aider or copilot; what stands "
        "behind -- is handed on to it",
    )
    launch.add_argument(
        "model", nargs="?", metavar="MODEL", help="the model (the server's default)"
    )
    launch.add_argument(
        "--url", metavar="URL", help="a server that runs elsewhere than by default"
    )
    launch.add_argument(
        "--print",
        action="store_true",
        help="only show what would be set; for any agent",
    )
    launch.add_argument(
        "--force",
        action="store_true",
        help="run with a model whose context is too small",
    )


def service_arguments(service: argparse.ArgumentParser) -> None:
    """`rvllm service ACTION [MODEL ...] [-- FLAGS]`."""
    service.add_argument(
        "action",
        choices=("install", "uninstall", "status", "logs"),
        help="install, uninstall, status or logs; what stands behind -- are flags of "
        "rvllm serve",
    )
    service.add_argument(
        "models", nargs="*", metavar="MODEL", help="models that are served"
    )


def stop_arguments(stop: argparse.ArgumentParser) -> None:
    """`rvllm stop`."""
    stop.add_argument(
        "--port", type=int, metavar="N", help="the server's, if several run"
    )
    stop.add_argument("--all", action="store_true", help="all servers of yours")
    stop.add_argument(
        "--now", action="store_true", help="cut off what is open, and do not wait"
    )


def completion_arguments(completion: argparse.ArgumentParser) -> None:
    """`rvllm completion SHELL`."""
    completion.add_argument(
        "shell",
        metavar="SHELL",
        help="bash, zsh or fish; put what it prints into its rc",
    )


def no_arguments(_verb: argparse.ArgumentParser) -> None:
    """A verb without flags."""


def _engine(verb: argparse.ArgumentParser) -> None:
    """The engine's options. Reading their declaration takes a while."""
    from rvllm_local.commands.flags import add_engine_flags

    add_engine_flags(verb)
