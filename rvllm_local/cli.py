"""The `rvllm` command: parses the verbs, and imports what a verb needs only when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from rvllm_local.commands.bench import add_arguments as bench_flags
from rvllm_local.commands.chat import add_arguments as chat_flags
from rvllm_local.commands.flags import add_engine_flags
from rvllm_local.errors import DownloadError, EngineError, RvllmError

_FAILED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130
_SWALLOWED_S = 3.0  # after which an interrupt that has not ended the process was caught by somebody else


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 1 for a failure, 2 for bad input. Ctrl-C ends the process with 130."""
    arguments = _parser().parse_args(argv)
    try:
        status = _VERBS[arguments.verb](arguments)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RvllmError, OSError) as error:
        print(f"rvllm: error: {error}", file=sys.stderr)
        return (
            _FAILED
            if isinstance(error, EngineError | DownloadError | OSError)
            else _BAD_INPUT
        )


@contextlib.contextmanager
def _insisting_interrupts() -> Iterator[None]:
    """Ctrl-C ends the process even where a library catches every exception, as some do while they are imported.

    An interrupt that is ignored stays ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED_S)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: _interrupted())
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)


def _interrupted() -> int:
    """Leave at once: a model that is still loading on the engine's thread would abort an orderly shutdown."""
    print(file=sys.stderr, flush=True)
    os._exit(_INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rvllm", description="A local-first assistant runtime."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser("run", help="answer a prompt and print the figures")
    run.add_argument("model", help="catalogue name, model folder or .gguf file")
    run.add_argument(
        "prompt",
        nargs="?",
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
        "--temperature", type=float, default=0.7, metavar="T", help="0 is greedy"
    )
    run.add_argument("--top-p", type=float, default=0.95, metavar="P")
    run.add_argument(
        "--seed", type=int, metavar="N", help="makes the answer repeatable"
    )
    run.add_argument("--adapter", metavar="DIR", help="answer with this LoRA adapter")
    add_engine_flags(run)
    _add_serve(
        verbs.add_parser(
            "serve", help="answer OpenAI- and Anthropic-style requests on localhost"
        )
    )
    plan = verbs.add_parser(
        "plan", help="show what memory a model takes, without loading it"
    )
    plan.add_argument("model", help="catalogue name, model folder or .gguf file")
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
    add_engine_flags(plan)
    chat = verbs.add_parser("chat", help="talk in the terminal")
    chat_flags(chat)
    _add_model_verbs(verbs)
    doctor = verbs.add_parser(
        "doctor", help="check this machine, and with --kernels the GPU kernels on it"
    )
    doctor.add_argument(
        "--kernels",
        action="store_true",
        help="every kernel against a reference, and its GB/s",
    )
    doctor.add_argument(
        "--verify", action="store_true", help="every checksum in the store"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    bench_flags(
        verbs.add_parser(
            "bench", help="measure an endpoint, the engine, the kernels or the start"
        )
    )
    verbs.add_parser("config", help="print the configuration and where it comes from")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="models by name or path; the first is the default",
    )
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
    serve.add_argument(
        "--lenient", action="store_true", help="drop unknown fields of requests"
    )
    serve.add_argument(
        "--keep-alive",
        metavar="TIME",
        help="unload a model that was idle for so long, like 10m",
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
    serve.add_argument(
        "--drain",
        default="30s",
        metavar="TIME",
        help="how long open requests may go on at the end",
    )
    serve.add_argument("--tls-cert", metavar="FILE")
    serve.add_argument("--tls-key", metavar="FILE")
    add_engine_flags(serve)


def _add_model_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """What gets, shows, makes and removes models."""
    ls = verbs.add_parser(
        "ls", help="list the models that are installed, and those that have a name"
    )
    ls.add_argument(
        "--installed", action="store_true", help="only what is on this machine"
    )
    pull = verbs.add_parser("pull", help="fetch a model")
    pull.add_argument(
        "model",
        help="catalogue name, owner/name[@revision] or owner/name/file.gguf of the hub",
    )
    pull.add_argument(
        "--refresh",
        action="store_true",
        help="fetch the newest commit, if there is a newer one",
    )
    pull.add_argument("--pin", action="store_true", help="protect it from rm")
    pull.add_argument(
        "--unpin", action="store_true", help="stop to protect it; fetches nothing"
    )
    rm = verbs.add_parser("rm", help="remove installed models")
    rm.add_argument("models", nargs="+", metavar="model")
    rm.add_argument("--yes", action="store_true", help="do not ask")
    show = verbs.add_parser("show", help="print all that is known of a model")
    show.add_argument(
        "model", help="catalogue name, installed model, folder or .gguf file"
    )
    show.add_argument(
        "--verify",
        action="store_true",
        help="hold its files against their checksums first",
    )
    ps = verbs.add_parser("ps", help="list the processes that have a model open")
    ps.add_argument(
        "--url", metavar="URL", help="ask the server there, too (RVLLM_URL)"
    )
    search = verbs.add_parser("search", help="look for models by name")
    search.add_argument("words", nargs="+", metavar="word")
    search.add_argument("--offline", action="store_true", help="only in the catalogue")
    search.add_argument(
        "--limit", type=int, default=20, metavar="N", help="most models of the hub"
    )
    for verb in (ls, show, ps, search):
        verb.add_argument("--json", action="store_true", help="print JSON")
    pack = verbs.add_parser(
        "pack", help="write a model as a bundle, which loads without a copy"
    )
    pack.add_argument("model", help="catalogue name, model folder or .gguf file")
    pack.add_argument("--output", "-o", metavar="FOLDER", help="where (NAME.rvllm)")
    convert = verbs.add_parser(
        "convert", help="quantize a model, and measure what it cost"
    )
    convert.add_argument(
        "model", help="unquantized model: owner/name, folder or .gguf file"
    )
    convert.add_argument("--output", "-o", metavar="FOLDER", help="where (NAME-4-bit)")
    convert.add_argument("--bits", type=int, metavar="N", help="2, 3, 4, 5, 6 or 8 (4)")
    convert.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="32, 64 or 128 weights share a scale (64)",
    )
    convert.add_argument(
        "--mode", default="affine", metavar="MODE", help="affine, mxfp4, mxfp8 or nvfp4"
    )
    convert.add_argument(
        "--recipe", metavar="NAME", help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6"
    )
    convert.add_argument(
        "--bundle",
        action="store_true",
        help="write a bundle, not a folder of safetensors",
    )
    convert.add_argument("--no-perplexity", action="store_true", help="do not measure")
    convert.add_argument("--json", action="store_true", help="print JSON")
    pack.add_argument(
        "--float32",
        action="store_true",
        help="with float32 weights, for machines without a GPU",
    )


def _plan(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.plan import plan

    return plan(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.doctor import doctor

    return doctor(arguments)


def _run(arguments: argparse.Namespace) -> int:
    with _insisting_interrupts():
        from rvllm_local.commands.run import run

        return run(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.serve import serve

    return serve(arguments)


def _chat(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.chat import chat

    return chat(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.bench import bench

    return bench(arguments)


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


def _config(_arguments: argparse.Namespace) -> int:
    from rvllm_local.commands.run import config

    return config()


_VERBS = {
    "run": _run,
    "chat": _chat,
    "serve": _serve,
    "plan": _plan,
    "config": _config,
    "doctor": _doctor,
    "pack": _pack,
    "convert": _convert,
    "bench": _bench,
    **dict.fromkeys(("ls", "pull", "rm", "show", "ps", "search"), _about_models),
}

if __name__ == "__main__":
    sys.exit(main())
