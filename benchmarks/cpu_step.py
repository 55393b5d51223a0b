"""A packed step alone: its time and its processor time, for some ways of waiting.

    python -m benchmarks.cpu_step [--model NAME] [--spins 0 50 200] [--rows 1 8 16]

No engine and no server: the products and what lies between them, then the head. The ways
of waiting (microseconds that an idle thread of onnxruntime spins for) take turns. Printed
are medians and, in parentheses, minima, in milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import blocks_for
from rvllm_local.memory.tables import KVTables
from rvllm_local.models.cpu import runtime
from rvllm_local.models.cpu.backend import StepModel
from rvllm_local.models.cpu.step import build_step
from rvllm_local.models.cpu.structure import find_decoder
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate

TURNS = 12
STEPS = 4  # a turn; the first of them is not counted


class Subject:
    """A packed model and room for some sequences."""

    def __init__(self, model: str, spin_us: int, most_rows: int, context: int) -> None:
        runtime.SPIN_US = spin_us
        module = load_model(locate(model), packs=True).module
        install(module)
        self._layout = probe_layout(module)
        self._context = context
        blocks = most_rows * blocks_for(context + 1) + 2
        arenas = [Arena(shape, blocks) for shape in self._layout.groups]
        kv = KVTables(self._layout, [blocks] * len(arenas))
        decoder = find_decoder(module)
        assert decoder is not None, "this model has no packed step"
        step = build_step(decoder, self._layout, arenas)
        assert step is not None, "this model has no packed step"
        self._model = StepModel(step, arenas)
        self._tables = []
        for _ in range(most_rows):
            tables = kv.new_sequence()
            kv.grow(tables, context + 1)
            self._tables.append(tables)

    def decode(self, rows: int) -> None:
        """One step of so many rows."""
        positions = [self._context] * rows
        geometry = call_geometry(self._layout, self._tables[:rows], positions, 1)
        self._model.decode(geometry, np.arange(rows) + 1000)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """The clock's and the processor's milliseconds."""
    clock = time.perf_counter()
    processor = time.process_time()
    call()
    used = time.process_time() - processor
    return 1000 * (time.perf_counter() - clock), 1000 * used


def in_words(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):6.1f} ({min(samples):.1f})"


def compare(subjects: dict[int, Subject], rows: int) -> None:
    samples: dict[int, list[tuple[float, float]]] = {spin: [] for spin in subjects}
    for _ in range(TURNS):
        for spin, subject in subjects.items():
            decode = functools.partial(subject.decode, rows)
            for step in range(STEPS):
                pair = timed(decode)
                if step:
                    samples[spin].append(pair)
    for spin, pairs in samples.items():
        clock = in_words([pair[0] for pair in pairs])
        processor = in_words([pair[1] for pair in pairs])
        print(f"{rows:3} rows, spin {spin:5} us: {clock} ms, processor {processor} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--spins", type=int, nargs="*", default=[0, 50, 200])
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--context", type=int, default=64)
    arguments = parser.parse_args()
    most_rows = max(arguments.rows)
    subjects = {}
    for spin in arguments.spins:
        subject = Subject(arguments.model, spin, most_rows, arguments.context)
        subjects[spin] = subject
    for rows in arguments.rows:
        compare(subjects, rows)


if __name__ == "__main__":
    main()
