"""Counters and timings for Prometheus, and the engines' own figures at the moment they are asked for. No prompt text."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rvllm_local.conversation.calls import Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """One registry a server: two servers in one process do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rvllm_requests",
            "Finished requests by outcome",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "rvllm_tokens", "Tokens by kind", ["model", "kind"], registry=self.registry
        )
        self._duration = Histogram(
            "rvllm_request_seconds",
            "From start to end of a request",
            ["model"],
            registry=self.registry,
        )
        self._ttft = Histogram(
            "rvllm_ttft_seconds",
            "Time to first token",
            ["model"],
            buckets=_TTFT_S,
            registry=self.registry,
        )
        self._itl = Histogram(
            "rvllm_inter_token_seconds",
            "Time between tokens",
            ["model"],
            buckets=_ITL_S,
            registry=self.registry,
        )
        self._responses = Counter(
            "rvllm_http_responses",
            "Answers by status",
            ["status"],
            registry=self.registry,
        )
        self._engine = Gauge(
            "rvllm_engine",
            "The engine's own figures",
            ["model", "figure"],
            registry=self.registry,
        )

    def finished(self, model: str, outcome: str, seconds: float) -> None:
        self._requests.labels(model, outcome).inc()
        self._duration.labels(model).observe(seconds)

    def refused(self, model: str) -> None:
        self._requests.labels(model, "refused").inc()

    def first_token(self, model: str, seconds: float) -> None:
        self._ttft.labels(model).observe(seconds)

    def next_token(self, model: str, seconds: float) -> None:
        self._itl.labels(model).observe(seconds)

    def counted(self, model: str, usage: Usage) -> None:
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)

    def responded(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def exposition(
        self, engines: Mapping[str, Mapping[str, int | float | str]]
    ) -> bytes:
        """The text that Prometheus reads, with each engine's figures as of now."""
        self._engine.clear()
        for model, figures in engines.items():
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._engine.labels(model, name).set(value)
        return generate_latest(self.registry)
