"""Refusals in the log: the first ones each, then a sum once in a while.

A client that goes wrong does so thousands of times, and must not fill a disk.
"""

from __future__ import annotations

import asyncio
import collections
import logging

from rvllm_local.server.http.problems import Problem

logger = logging.getLogger(__name__)

_EVERY_S = 60.0
_SHOWN = 10  # refusals with a line each, before the others are counted
_KINDS = 5  # of refusals that a sum names


class RefusalLog:
    """What one server refused. Used on the event loop only.

    Nothing that a client wrote is told: routes are the server's own.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._num_shown = 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, route: str, problem: Problem) -> None:
        """Tell or count a refusal, with its reason and the field."""
        reason = f"{problem.status} {problem.code or problem.kind}"
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every_s, self.tell)
        if self._num_shown < _SHOWN:
            self._num_shown += 1
            field = "" if problem.parameter is None else f", field {problem.parameter}"
            logger.info("%s refused: %s%s", route, reason, field)
            return
        self._counts[f"{route} {reason}"] += 1

    def tell(self) -> None:
        """Log the sum of those that were counted, and begin anew."""
        if self._timer is not None:
            self._timer.cancel()
        counts, self._counts = self._counts, collections.Counter()
        self._timer, self._num_shown = None, 0
        if not counts:
            return
        kinds = []
        for kind, count in counts.most_common(_KINDS):
            kinds.append(f"{count} x {kind}")
        if len(counts) > _KINDS:
            kinds.append("others")
        logger.info(
            "%d more refused within %g s: %s",
            counts.total(),
            self._every_s,
            "; ".join(kinds),
        )
