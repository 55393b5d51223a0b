"""The flags of the verbs that get, show, make and remove models."""

from __future__ import annotations

import argparse

_MODEL = "catalogue name, model folder or .gguf file"


def ls_arguments(ls: argparse.ArgumentParser) -> None:
    """`rvllm ls`."""
    ls.add_argument(
        "--installed", action="store_true", help="only what is on this machine"
    )
    _json(ls)


def pull_arguments(pull: argparse.ArgumentParser) -> None:
    """`rvllm pull MODEL`."""
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


def rm_arguments(rm: argparse.ArgumentParser) -> None:
    """`rvllm rm MODEL...`."""
    rm.add_argument("models", nargs="+", metavar="model", help="installed models")
    rm.add_argument("--yes", action="store_true", help="do not ask")


def show_arguments(show: argparse.ArgumentParser) -> None:
    """`rvllm show MODEL`."""
    show.add_argument(
        "model", help="catalogue name, installed model, folder or .gguf file"
    )
    show.add_argument(
        "--verify",
        action="store_true",
        help="hold its files against their checksums first",
    )
    _json(show)


def ps_arguments(ps: argparse.ArgumentParser) -> None:
    """`rvllm ps`."""
    ps.add_argument(
        "--url", metavar="URL", help="ask the server there, too (RVLLM_URL)"
    )
    _json(ps)


def recommend_arguments(recommend: argparse.ArgumentParser) -> None:
    """`rvllm recommend`."""
    _json(recommend)


def cache_arguments(cache: argparse.ArgumentParser) -> None:
    """`rvllm cache`."""
    cache.add_argument(
        "action",
        nargs="?",
        choices=("clear",),
        help="clear: remove what it holds",
    )
    cache.add_argument(
        "models",
        nargs="*",
        metavar="model",
        help="the models to clear; all, if none is named",
    )
    _json(cache)


def search_arguments(search: argparse.ArgumentParser) -> None:
    """`rvllm search WORD...`."""
    search.add_argument("words", nargs="+", metavar="word", help="parts of a name")
    search.add_argument("--offline", action="store_true", help="only in the catalogue")
    search.add_argument(
        "--limit", type=int, default=20, metavar="N", help="most models of the hub"
    )
    _json(search)


def pack_arguments(pack: argparse.ArgumentParser) -> None:
    """`rvllm pack MODEL`."""
    pack.add_argument("model", help=_MODEL)
    pack.add_argument("--output", "-o", metavar="FOLDER", help="where (NAME.rvllm)")
    pack.add_argument(
        "--float32",
        action="store_true",
        help="with float32 weights, for machines without a GPU",
    )


def convert_arguments(convert: argparse.ArgumentParser) -> None:
    """`rvllm convert MODEL`."""
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
    _json(convert)


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")
