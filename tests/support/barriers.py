"""An emulator that leaves a barrier out, to prove that tests notice."""

from __future__ import annotations

from rvllm_local.metal_kernels.launch import Dispatch
from tests.emulator import Emulator


class WithoutBarrier(Emulator):
    """Removes the barrier of this number from the body."""

    def __init__(self, barrier: str, number: int) -> None:
        super().__init__(seed=3)
        self._barrier, self._number = barrier, number

    def text(self, dispatch: Dispatch) -> str:
        text = super().text(dispatch)
        start = text.index("[[kernel]]")
        pieces = text[start:].split(self._barrier)
        assert len(pieces) > self._number + 1
        before = self._barrier.join(pieces[: self._number + 1])
        after = self._barrier.join(pieces[self._number + 1 :])
        return text[:start] + before + after
