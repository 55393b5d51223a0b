"""How long models stay loaded that nobody asks for, each by its own name."""

from __future__ import annotations

_RAREST_S, _OFTENEST_S = 5.0, 0.05


class KeepAlive:
    """`default_s` goes for models that nobody set a time for; None keeps them."""

    def __init__(self, default_s: float | None) -> None:
        self._default_s = default_s
        self._times: dict[str, float] = {}

    def set(self, name: str, seconds: float) -> None:
        """Set a model's own time, until it is unloaded; infinity keeps it."""
        self._times[name] = seconds

    def forget(self, name: str) -> None:
        """Let the default go for a model again."""
        self._times.pop(name, None)

    def of(self, name: str) -> float | None:
        """A model's time; None keeps it."""
        return self._times.get(name, self._default_s)

    @property
    def look_every_s(self) -> float:
        """How often to look, so that no time is exceeded by much."""
        times = list(self._times.values())
        if self._default_s is not None:
            times.append(self._default_s)
        shortest = min(times, default=_RAREST_S)
        return min(_RAREST_S, max(_OFTENEST_S, shortest / 4))
