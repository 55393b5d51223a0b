"""How long a call takes on a busy device, found out in little time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import mlx.core as mx

_CALLS = 8  # of a round, if they are quick
_ROUNDS = 3
_ROUND_SECONDS = 0.01  # that the calls of a round may take together


def busy_seconds(
    call: Callable[[], mx.array],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call: the quickest of some rounds.

    A call that is slow is made less often, so that a model's shapes take no more than
    some seconds in all.
    """
    mx.eval(call())  # compiles
    alone = _round_seconds(call, 1, clock)
    calls = _CALLS
    if alone * _CALLS > _ROUND_SECONDS:
        calls = max(1, int(_ROUND_SECONDS / alone))
    rounds = [_round_seconds(call, calls, clock) for _ in range(_ROUNDS)]
    return min(rounds) / calls


def in_turn(calls: Sequence[Callable[[], mx.array]]) -> Callable[[], mx.array]:
    """One call after the other, and again: no layer's weights stay in a cache.

    So it is in a step. A lone layer's weights would be read from the cache, which
    favours whatever reads them several times.
    """
    order = itertools.cycle(calls)

    def next_call() -> mx.array:
        return next(order)()

    return next_call


def _round_seconds(
    call: Callable[[], mx.array],
    calls: int,
    clock: Callable[[], float],
) -> float:
    outputs = [call() for _ in range(calls)]
    began = clock()
    mx.eval(outputs)
    return clock() - began
