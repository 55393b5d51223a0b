"""Python's collector stops the loop for as long as it looks at everything; with a thousand streams that is 0.15 s.

So everything is looked at when nobody waits for an answer, and otherwise only what is young.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

_LOOK_EVERY_S = 5.0
_AT_LEAST_EVERY_S = 900.0  # however busy the server is
_THRESHOLDS = (5_000, 20, 1_000_000)  # the last: never by itself


async def collect_when_idle(is_idle: Callable[[], bool]) -> None:
    """Runs as long as the server does. Changes the collector of the whole process."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is loaded by now is never garbage
    gc.set_threshold(*_THRESHOLDS)
    waited = 0.0
    try:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            waited += _LOOK_EVERY_S
            if (is_idle() and gc.get_count()[1]) or waited >= _AT_LEAST_EVERY_S:
                gc.collect()
                waited = 0.0
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
