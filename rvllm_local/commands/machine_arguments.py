"""The flags of the verbs that look at machines, or lend them. Loads nothing heavy."""

from __future__ import annotations

import argparse

_MODEL = "catalogue name, model folder or .gguf file"


def doctor_arguments(doctor: argparse.ArgumentParser) -> None:
    """`rvllm doctor`."""
    doctor.add_argument(
        "--kernels",
        action="store_true",
        help="every kernel against a reference, and its GB/s",
    )
    doctor.add_argument(
        "--verify", action="store_true", help="every checksum in the store"
    )
    doctor.add_argument(
        "--hosts",
        metavar="FILE",
        help="only the other machines of a job: `rvllm rank` waits on each",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")


def rank_arguments(rank: argparse.ArgumentParser) -> None:
    """`rvllm rank MODEL`."""
    rank.add_argument("model", help=_MODEL)
    rank.add_argument(
        "--hosts",
        metavar="FILE",
        help="the machines of the job, rank 0 first; the same file on all of them",
    )
    rank.add_argument(
        "--rank", type=int, metavar="N", help="this machine's number, from 1 on"
    )
