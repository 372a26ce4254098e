"""Figures of a server, as Prometheus reads them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one server.

    Attributes:
        requests: Predictions asked for, by task and status; of a task that is not served the name is ``-``.
        seconds: From a request's first byte to its answer, by task.
        batch_images: Images of each batch, by task.
        batch_seconds: That the model took for a batch, by task.
        switches: Batches of another task than the one before.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("apla_requests", "Predictions asked for.", ("task", "status"), registry=own)
        self.seconds = Histogram("apla_request_seconds", "Of a prediction.", ("task",), buckets=_SECONDS, registry=own)
        self.batch_images = Histogram(
            "apla_batch_images", "Images of a batch.", ("task",), buckets=(1, 2, 4, 8, 16, 32), registry=own
        )
        self.batch_seconds = Histogram("apla_batch_seconds", "Of a batch.", ("task",), buckets=_SECONDS, registry=own)
        self.switches = Counter("apla_task_switches", "Batches of another task than the one before.", registry=own)
        ProcessCollector(registry=own)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a figure that is asked for when the metrics are read."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
