"""Rank 0 and another rank in one process, each with the whole model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from rvllm_local.distributed import frames
from rvllm_local.distributed.leading_core import leading_core
from rvllm_local.distributed.part_server import PartServer
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.open_part import ModelPart, open_part
from rvllm_local.framing import decode, encode
from rvllm_local.memory.swap import SwapSpace
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer

_HEAD = 4  # bytes of a frame's length


@dataclass
class Pair:
    """The parts of both ranks, what serves the other one's, and rank 0's core."""

    ours: ModelPart
    theirs: ModelPart
    server: PartServer
    core: EngineCore = field(init=False)

    def tell(self, frame: frames.Frame) -> None:
        """Bring a frame over as a link does, and make the call."""
        self.ask(frame)

    def ask(self, frame: frames.Frame) -> bool:
        """As `tell`; the other rank's verdict, if it gives one."""
        call = decode(encode(frame)[_HEAD:], frames.FROM_LEADER)
        assert isinstance(call, frames.Call)
        verdict = self.server.run(call)
        return verdict is not None and verdict.is_done

    @contextlib.contextmanager
    def together(self, call: frames.Call) -> Iterator[None]:
        """Have the other rank make a call, and then this one, in the block."""
        self.tell(call)
        yield


@contextlib.contextmanager
def rank_pair(
    folder: Path, options: EngineOptions, options_there: EngineOptions | None = None
) -> Iterator[Pair]:
    """A pair over a model, with the other rank's options if they differ."""
    files = locate(str(folder))
    group = mx.distributed.init()
    ours = open_part(files, options, group)
    theirs = open_part(files, options, group)
    with contextlib.closing(SwapSpace()) as space:
        store = theirs.open_store(options_there or options)
        pair = Pair(ours, theirs, PartServer(theirs.runner, space, store))
        pair.core = leading_core(ours, read_tokenizer(files), options, pair)
        try:
            yield pair
        finally:
            pair.core.close("the test is over")
            pair.server.close()
