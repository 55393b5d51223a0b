"""What the engine's thread asks of a core: one that writes, or one that reads alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    Request,
    RequestReport,
)

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher


class Core(Protocol):
    """One thread owns it and calls it."""

    limits: EngineLimits
    num_steps: int

    @property
    def has_work(self) -> bool:
        """A step would do something."""

    @property
    def has_idle_work(self) -> bool:
        """`idle` would do something."""

    def idle(self) -> None:
        """Do a little of what can wait."""

    def add(
        self,
        request: Request,
        sink: EventSink,
        matcher: Matcher | None = None,
    ) -> None:
        """Queue a request that `limits.check` has accepted. Raises `ParameterError`."""

    def cancel(self, request_id: str) -> None:
        """End every choice of a request now."""

    def fail_all(self, message: str) -> None:
        """End every open request with an error."""

    def close(self, message: str) -> None:
        """End open requests with an error, for good."""

    def step(self) -> None:
        """One bounded piece of work."""

    def stats(self) -> dict[str, int | float | str]:
        """Counters and gauges."""

    def snapshot(self) -> EngineSnapshot:
        """The engine at work, for people."""

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """The reports of a finished request's choices."""
