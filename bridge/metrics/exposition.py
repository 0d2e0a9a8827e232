"""Figures as text for Prometheus, and a port from which it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_wsgi_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from squadron.bridge.metrics.families import COUNTERS, GAUGES, MetricFamily, Numbers
from squadron.bridge.metrics.figures import Figures


class Exposition(Collector):
    """What prometheus_client shows, made anew for each scrape."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        """Make one; `figures` is called in the threads of those who scrape."""
        self._figures = figures

    def describe(self) -> list[Metric]:
        """Nothing: there is no need to look whether names are taken."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; those of which there are no numbers are left out."""
        figures = self._figures()
        for family in (*COUNTERS, *GAUGES.values()):
            if rows := figures.of(family):
                yield _metric(family, rows)


def _metric(family: MetricFamily, rows: dict[tuple[str, ...], Numbers]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, (total, *counts) in rows.items():
            bounds = [*(f"{bound:g}" for bound in family.buckets), "+Inf"]
            full = [*counts, *[0.0] * (len(bounds) - len(counts))]
            histogram.add_metric(labels, list(zip(bounds, accumulate(full), strict=True)), total)
        return histogram
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=family.labels)
    for labels, (value, *_) in rows.items():
        metric.add_metric(labels, value)
    return metric


def registry_of(figures: Callable[[], Figures]) -> CollectorRegistry:
    """A registry that holds nothing but our figures."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exposition(figures))
    return registry


def text_of(figures: Figures) -> str:
    """The figures in the text format of Prometheus, 0.0.4."""
    return generate_latest(registry_of(lambda: figures)).decode()


#: A WSGI application (PEP 3333).
WsgiApp = Callable[[dict[str, Any], Any], Any]


class ScrapePort:
    """`/metrics` on a port of its own, in threads of its own: it needs no token, and shows no secret."""

    def __init__(self, address: str, figures: Callable[[], Figures], probes: WsgiApp | None = None) -> None:
        """Begin to answer.

        Args:
            address: `host:port`, as the setting `metrics`; with port 0 one that is free.
            probes: answers `/healthz` and `/readyz`.

        Raises:
            OSError: the address can't be had.
        """
        host, _, port = address.rpartition(":")
        self._server: Any
        self._server, self._thread = start_wsgi_server(int(port), host.strip("[]"), registry_of(figures))
        if probes is not None:
            self._server.set_app(_beside(self._server.get_app(), probes))
        self.address = f"{host}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Where it is scraped."""
        return f"http://{self.address}/metrics"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _beside(metrics: WsgiApp, probes: WsgiApp) -> WsgiApp:
    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        app = probes if environ.get("PATH_INFO") in ("/healthz", "/readyz") else metrics
        return app(environ, start_response)

    return answer
