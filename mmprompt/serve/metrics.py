"""What Prometheus is told of a server."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily

from mmprompt.serve.prompts import PromptFolder

PATHS = frozenset({"/health", "/metrics", "/openapi.json", "/prompts", "/images", "/texts"})


class Metrics:
    """Counters and times of requests, and what the folder of prompts holds now."""

    def __init__(self, prompts: PromptFolder) -> None:
        self.registry = registry = CollectorRegistry()
        self.prompts = prompts
        ProcessCollector(registry=registry)
        registry.register(self)
        labels = ("method", "path")
        self.requests = Counter("mmprompt_requests", "Requests.", (*labels, "status"), registry=registry)
        self.seconds = Histogram("mmprompt_request_seconds", "From the first byte on.", labels, registry=registry)
        self.under_way = Gauge("mmprompt_requests_under_way", "Requests not answered yet.", registry=registry)
        sizes = tuple(2**power for power in range(11))
        self.batches = Histogram("mmprompt_batch_size", "Questions.", buckets=sizes, registry=registry)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See `CollectorRegistry`."""
        yield GaugeMetricFamily("mmprompt_prompts", "Prompts in use.", len(self.prompts.prompts))
        yield GaugeMetricFamily("mmprompt_prompts_refused", "Prompts that are not.", len(self.prompts.refused))

    def measure(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; what strangers make up gets no label of its own."""
        if path not in PATHS:
            path = "/prompts/{name}" if path.startswith("/prompts/") else "other"
        known = method if method in ("GET", "POST") else "other"
        self.requests.labels(known, path, status).inc()
        self.seconds.labels(known, path).observe(seconds)
